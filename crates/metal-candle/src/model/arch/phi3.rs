//! Phi-3: llama with stacked projections, partial rotation and LongRoPE.

use super::{Sizes, activation, uniform};
use crate::model::{
    config::Config,
    rope,
    spec::{AttentionSpec, DecoderSpec, MlpSpec},
};

pub(super) fn spec(config: &Config) -> DecoderSpec {
    let sizes = Sizes::read(config, 4096, 1e-5);
    let window = config.size_if_given("sliding_window");
    let attention = AttentionSpec { fused: true, window, ..sizes.attention() };
    if config.flag_or("attention_bias", false) {
        config.problem("`attention_bias: true` is not supported for phi3");
    }
    config.size_if_given("original_max_position_embeddings");
    let rope = rope::read(config, sizes.head_dim, 10_000.0);
    let mlp = MlpSpec { fused: true, ..sizes.mlp(activation(config, "silu")) };
    let tied = config.flag_or("tie_word_embeddings", false);
    sizes.decoder(config, vec![rope], uniform(sizes.layers, attention, mlp), tied)
}
