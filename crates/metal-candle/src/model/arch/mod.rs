//! One file per architecture: `config.json` → [`DecoderSpec`]. Weight names are Hugging Face's.

mod gemma;
mod granite;
mod llama;
mod mistral;
mod olmo2;
mod phi3;
mod qwen;
mod smollm3;

use metal_candle_kernels::linear::Activation;

use super::{
    config::{Config, ConfigError},
    rope::RopeSpec,
    spec::{AttentionSpec, DecoderSpec, HeadSpec, LayerSpec, MlpSpec, NormPlacement, NormSpec, QkNorm},
};

/// `model_type` values that can be read.
pub const SUPPORTED: &[&str] =
    &["gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3"];

/// Turns a config into a spec, or lists everything that stands in the way.
///
/// `ignore` names config keys that are unknown here and that the caller knows to be harmless.
pub fn read(config: &Config, ignore: &[String]) -> Result<DecoderSpec, ConfigError> {
    if config.has("quantization_config") {
        config.problem(
            "quantised checkpoints (`quantization_config`) are not supported; use the unquantised model",
        );
    }
    let Some(model_type) = config.text_if_given("model_type") else {
        let known = SUPPORTED.join(", ");
        return Err(ConfigError::Problems(vec![format!("`model_type` is missing; supported: {known}")]));
    };
    let spec = match model_type {
        "gemma2" => gemma::gemma2(config),
        "gemma3_text" => gemma::gemma3(config),
        "granite" => granite::spec(config),
        "llama" => llama::spec(config),
        "mistral" => mistral::spec(config),
        "olmo2" => olmo2::spec(config),
        "phi3" => phi3::spec(config),
        "qwen2" => qwen::qwen2(config),
        "qwen3" => qwen::qwen3(config),
        "smollm3" => smollm3::spec(config),
        other => {
            let known = SUPPORTED.join(", ");
            let problem = format!("architecture `{other}` is not supported; supported: {known}");
            return Err(ConfigError::Problems(vec![problem]));
        }
    };
    config.finish(ignore)?;
    Ok(spec)
}

/// The sizes that every config has.
struct Sizes {
    vocab: usize,
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    max_positions: usize,
    epsilon: f32,
}

impl Sizes {
    fn read(config: &Config, default_max_positions: usize, default_epsilon: f64) -> Self {
        let hidden = config.size("hidden_size");
        let heads = config.size("num_attention_heads");
        let kv_heads = config.size_or("num_key_value_heads", heads);
        if !heads.is_multiple_of(kv_heads) {
            config.problem(format!(
                "`num_attention_heads` ({heads}) must be a multiple of `num_key_value_heads` ({kv_heads})"
            ));
        }
        let head_dim = config.size_if_given("head_dim").unwrap_or_else(|| {
            if !hidden.is_multiple_of(heads) {
                config.problem(format!(
                    "`hidden_size` ({hidden}) is no multiple of `num_attention_heads` ({heads}) and `head_dim` is missing"
                ));
            }
            (hidden / heads).max(2)
        });
        let layers = config.size("num_hidden_layers");
        if layers > MAX_LAYERS {
            config.problem(format!("`num_hidden_layers` ({layers}) is above {MAX_LAYERS}"));
        }
        Self {
            vocab: config.size("vocab_size"),
            hidden,
            intermediate: config.size("intermediate_size"),
            layers: layers.min(MAX_LAYERS),
            heads,
            kv_heads,
            head_dim,
            max_positions: config.size_or("max_position_embeddings", default_max_positions),
            epsilon: config.positive_or("rms_norm_eps", default_epsilon) as f32,
        }
    }

    /// Plain grouped-query attention without biases, windows or caps.
    fn attention(&self) -> AttentionSpec {
        AttentionSpec {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            soft_cap: None,
            window: None,
            rope: Some(0),
            input_bias: false,
            output_bias: false,
            fused: false,
            qk_norm: QkNorm::None,
        }
    }

    /// A gated MLP without biases.
    fn mlp(&self, activation: Activation) -> MlpSpec {
        MlpSpec { intermediate_size: self.intermediate, activation, bias: false, fused: false }
    }

    /// A decoder without multipliers whose norms stand before each half.
    fn decoder(
        &self,
        config: &Config,
        ropes: Vec<RopeSpec>,
        layers: Vec<LayerSpec>,
        tied: bool,
    ) -> DecoderSpec {
        DecoderSpec {
            architecture: config.text_if_given("model_type").unwrap_or_default().to_owned(),
            vocab_size: self.vocab,
            hidden_size: self.hidden,
            max_positions: ropes
                .iter()
                .map(|rope| rope.reach(self.max_positions))
                .max()
                .unwrap_or(self.max_positions),
            embedding_scale: 1.0,
            residual_scale: 1.0,
            norm: NormSpec { epsilon: self.epsilon, weight_offset: 0.0 },
            ropes,
            layers,
            head: HeadSpec { tied, scale: 1.0, soft_cap: None },
        }
    }

    /// Which layers slide, by `layer_types` or else by the architecture's rule for a layer's index.
    fn sliding_layers(&self, config: &Config, rule: impl Fn(usize) -> bool) -> Vec<bool> {
        let Some(names) = config.texts_if_given("layer_types") else {
            return (0..self.layers).map(rule).collect();
        };
        if names.len() != self.layers {
            config.problem(format!("`layer_types` needs {} entries, found {}", self.layers, names.len()));
        }
        let sliding = (0..self.layers).map(|layer| match names.get(layer) {
            Some(&"sliding_attention") => true,
            Some(&"full_attention") | None => false,
            Some(other) => {
                config.problem(format!("layer type `{other}` is not supported"));
                false
            }
        });
        sliding.collect()
    }
}

/// More than any model has; keeps a hostile config from asking for a huge list.
const MAX_LAYERS: usize = 1024;

/// The gate's nonlinearity, under either of its config keys.
fn activation(config: &Config, default: &str) -> Activation {
    let name = config.text_if_given("hidden_activation");
    let other = config.text_if_given("hidden_act");
    match name.or(other).unwrap_or(default) {
        "silu" | "swish" => Activation::Silu,
        "gelu_pytorch_tanh" | "gelu_new" => Activation::GeluTanh,
        "gelu" => Activation::Gelu,
        other => {
            config.problem(format!(
                "activation `{other}` is not supported (silu, gelu, gelu_pytorch_tanh are)"
            ));
            Activation::Silu
        }
    }
}

/// `count` equal layers whose norms stand before each half.
fn uniform(count: usize, attention: AttentionSpec, mlp: MlpSpec) -> Vec<LayerSpec> {
    vec![LayerSpec { attention, mlp, norms: NormPlacement::Before }; count]
}
