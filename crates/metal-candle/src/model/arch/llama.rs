//! Llama 2 and 3.

use super::{Sizes, activation, uniform};
use crate::model::{
    config::Config,
    rope,
    spec::{AttentionSpec, DecoderSpec, MlpSpec},
};

pub(super) fn spec(config: &Config) -> DecoderSpec {
    let sizes = Sizes::read(config, 2048, 1e-6);
    let bias = config.flag_or("attention_bias", false);
    let attention = AttentionSpec { input_bias: bias, output_bias: bias, ..sizes.attention() };
    let mlp = MlpSpec { bias: config.flag_or("mlp_bias", false), ..sizes.mlp(activation(config, "silu")) };
    let rope = rope::read(config, sizes.head_dim, 10_000.0);
    let tied = config.flag_or("tie_word_embeddings", false);
    sizes.decoder(config, vec![rope], uniform(sizes.layers, attention, mlp), tied)
}
