//! Gemma 2 and 3 (text): norms around each half with weights stored minus one, windows on most layers.

use super::{Sizes, activation};
use crate::model::{
    config::Config,
    rope::{self, RopeScaling, RopeSpec},
    spec::{AttentionSpec, DecoderSpec, HeadSpec, LayerSpec, NormPlacement, NormSpec, QkNorm},
};

pub(super) fn gemma2(config: &Config) -> DecoderSpec {
    let sizes = read_sizes(config, 8192);
    let sliding = sizes.sliding_layers(config, |layer| layer % 2 == 0);
    let attention = attention(config, &sizes, Some(50.0));
    let rope = rope::read(config, sizes.head_dim, 10_000.0);
    let window = config.size_or("sliding_window", 4096);
    let attentions =
        sliding.into_iter().map(|sliding| AttentionSpec { window: sliding.then_some(window), ..attention });
    decoder(config, &sizes, vec![rope], attentions.collect(), Some(30.0))
}

/// Gemma 3 has two rotary embeddings: 0 for the global layers, 1 for the sliding ones.
pub(super) fn gemma3(config: &Config) -> DecoderSpec {
    let sizes = read_sizes(config, 131_072);
    let pattern = config.size_or("sliding_window_pattern", 6);
    let pattern = config.size_or("_sliding_window_pattern", pattern);
    let sliding = sizes.sliding_layers(config, |layer| !(layer + 1).is_multiple_of(pattern));
    let attention = AttentionSpec { qk_norm: QkNorm::PerHead, ..attention(config, &sizes, None) };
    let window = config.size_or("sliding_window", 4096);
    let attentions = sliding.into_iter().map(|sliding| AttentionSpec {
        window: sliding.then_some(window),
        rope: Some(usize::from(sliding)),
        ..attention
    });
    let ropes = gemma3_ropes(config, sizes.head_dim);
    decoder(config, &sizes, ropes, attentions.collect(), None)
}

fn gemma3_ropes(config: &Config, head_dim: usize) -> Vec<RopeSpec> {
    let (global, local) = (1_000_000.0, config.positive_or("rope_local_base_freq", 10_000.0));
    let per_layer_type = config.value("rope_parameters").is_some_and(|value| {
        value.get("full_attention").is_some() || value.get("sliding_attention").is_some()
    });
    if !per_layer_type {
        let sliding = RopeSpec { theta: local, rotary_dim: head_dim, scaling: RopeScaling::None };
        return vec![rope::read(config, head_dim, global), sliding];
    }
    let nested =
        config.object_if_given("rope_parameters").expect("`rope_parameters` was seen to be an object");
    let read = |key: &str, default_theta: f64| match nested.object_if_given(key) {
        Some(object) => {
            let spec = rope::read_object(config, &object, head_dim, default_theta, 1.0);
            nested.absorb(key, &object);
            spec
        }
        None => RopeSpec { theta: default_theta, rotary_dim: head_dim, scaling: RopeScaling::None },
    };
    let ropes = vec![read("full_attention", global), read("sliding_attention", local)];
    config.absorb("rope_parameters", &nested);
    ropes
}

fn read_sizes(config: &Config, default_max_positions: usize) -> Sizes {
    let mut sizes = Sizes::read(config, default_max_positions, 1e-6);
    sizes.head_dim = config.size_or("head_dim", 256);
    if config.flag_or("use_bidirectional_attention", false) {
        config.problem("`use_bidirectional_attention` is not supported by a decoder");
    }
    sizes
}

fn attention(config: &Config, sizes: &Sizes, default_cap: Option<f64>) -> AttentionSpec {
    let bias = config.flag_or("attention_bias", false);
    AttentionSpec {
        scale: config.positive_or("query_pre_attn_scalar", 256.0).powf(-0.5) as f32,
        soft_cap: soft_cap(config, "attn_logit_softcapping", default_cap),
        input_bias: bias,
        output_bias: bias,
        ..sizes.attention()
    }
}

fn soft_cap(config: &Config, key: &str, default: Option<f64>) -> Option<f32> {
    let default = default.filter(|_| !config.switched_off(key));
    config.number_if_given(key).or(default).map(|cap| cap as f32)
}

fn decoder(
    config: &Config,
    sizes: &Sizes,
    ropes: Vec<RopeSpec>,
    attentions: Vec<AttentionSpec>,
    default_cap: Option<f64>,
) -> DecoderSpec {
    let mlp = sizes.mlp(activation(config, "gelu_pytorch_tanh"));
    let layers =
        attentions.into_iter().map(|attention| LayerSpec { attention, mlp, norms: NormPlacement::Around });
    let tied = config.flag_or("tie_word_embeddings", true);
    let spec = sizes.decoder(config, ropes, layers.collect(), tied);
    DecoderSpec {
        // Gemma 3 states its context after the stretch.
        max_positions: sizes.max_positions,
        embedding_scale: (sizes.hidden as f32).sqrt(),
        norm: NormSpec { weight_offset: 1.0, ..spec.norm },
        head: HeadSpec { soft_cap: soft_cap(config, "final_logit_softcapping", default_cap), ..spec.head },
        ..spec
    }
}
