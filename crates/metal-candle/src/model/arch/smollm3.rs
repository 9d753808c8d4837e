//! SmolLM3: llama in which every fourth layer has no positions.

use super::{Sizes, activation};
use crate::model::{
    config::Config,
    rope,
    spec::{AttentionSpec, DecoderSpec, LayerSpec, MlpSpec, NormPlacement},
};

pub(super) fn spec(config: &Config) -> DecoderSpec {
    let sizes = Sizes::read(config, 32_768, 1e-6);
    let bias = config.flag_or("attention_bias", false);
    let rotates = rotating_layers(config, sizes.layers);
    let slides = config.flag_or("use_sliding_window", false);
    let window = config.size_if_given("sliding_window").filter(|_| slides);
    let sliding = sizes.sliding_layers(config, |layer| window.is_some() && !rotates[layer]);
    let mlp = MlpSpec { bias: config.flag_or("mlp_bias", false), ..sizes.mlp(activation(config, "silu")) };
    let layers = rotates.iter().zip(sliding).map(|(&rotates, sliding)| LayerSpec {
        attention: AttentionSpec {
            rope: rotates.then_some(0),
            window: window.filter(|_| sliding),
            input_bias: bias,
            output_bias: bias,
            ..sizes.attention()
        },
        mlp,
        norms: NormPlacement::Before,
    });
    let layers = layers.collect();
    let rope = rope::read(config, sizes.head_dim, 2_000_000.0);
    let tied = config.flag_or("tie_word_embeddings", true);
    sizes.decoder(config, vec![rope], layers, tied)
}

/// `no_rope_layers` holds a 1 for every layer that *does* rotate.
fn rotating_layers(config: &Config, layers: usize) -> Vec<bool> {
    let interval = config.size_or("no_rope_layer_interval", 4);
    let Some(flags) = config.numbers_if_given("no_rope_layers") else {
        return (0..layers).map(|layer| !(layer + 1).is_multiple_of(interval)).collect();
    };
    if flags.len() != layers {
        config.problem(format!("`no_rope_layers` needs {layers} entries, found {}", flags.len()));
    }
    (0..layers).map(|layer| flags.get(layer).is_some_and(|&flag| flag != 0.0)).collect()
}
