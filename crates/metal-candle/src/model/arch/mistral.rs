//! Mistral: llama with a sliding window on every layer.

use super::{Sizes, activation, uniform};
use crate::model::{
    config::Config,
    rope,
    spec::{AttentionSpec, DecoderSpec},
};

pub(super) fn spec(config: &Config) -> DecoderSpec {
    let sizes = Sizes::read(config, 4096 * 32, 1e-6);
    let window = (!config.switched_off("sliding_window")).then(|| config.size_or("sliding_window", 4096));
    let attention = AttentionSpec { window, ..sizes.attention() };
    let rope = rope::read(config, sizes.head_dim, 10_000.0);
    let tied = config.flag_or("tie_word_embeddings", false);
    let mlp = sizes.mlp(activation(config, "silu"));
    sizes.decoder(config, vec![rope], uniform(sizes.layers, attention, mlp), tied)
}
