//! Qwen2 and 2.5 (biases on q, k, v) and Qwen3 (norms on queries and keys).

use super::{Sizes, activation};
use crate::model::{
    config::Config,
    rope,
    spec::{AttentionSpec, DecoderSpec, LayerSpec, NormPlacement, QkNorm},
};

pub(super) fn qwen2(config: &Config) -> DecoderSpec {
    let sizes = Sizes::read(config, 32_768, 1e-6);
    let attention = AttentionSpec { input_bias: true, ..sizes.attention() };
    decoder(config, &sizes, attention)
}

pub(super) fn qwen3(config: &Config) -> DecoderSpec {
    let mut sizes = Sizes::read(config, 32_768, 1e-6);
    sizes.head_dim = config.size_or("head_dim", 128);
    let bias = config.flag_or("attention_bias", false);
    let norms = QkNorm::PerHead;
    let attention =
        AttentionSpec { input_bias: bias, output_bias: bias, qk_norm: norms, ..sizes.attention() };
    decoder(config, &sizes, attention)
}

fn decoder(config: &Config, sizes: &Sizes, attention: AttentionSpec) -> DecoderSpec {
    let slides = config.flag_or("use_sliding_window", false);
    let window = config.size_if_given("sliding_window").filter(|_| slides);
    let first_sliding = config.value("max_window_layers").and_then(serde_json::Value::as_u64).unwrap_or(28);
    let sliding = sizes.sliding_layers(config, |layer| window.is_some() && layer as u64 >= first_sliding);
    let mlp = sizes.mlp(activation(config, "silu"));
    let layers = sliding.into_iter().map(|sliding| LayerSpec {
        attention: AttentionSpec { window: window.filter(|_| sliding), ..attention },
        mlp,
        norms: NormPlacement::Before,
    });
    let rope = rope::read(config, sizes.head_dim, 10_000.0);
    let tied = config.flag_or("tie_word_embeddings", false);
    sizes.decoder(config, vec![rope], layers.collect(), tied)
}
