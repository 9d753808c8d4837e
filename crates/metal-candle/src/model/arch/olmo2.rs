//! OLMo 2: norms on what each half adds, and over all queries and keys.

use super::{Sizes, activation};
use crate::model::{
    config::Config,
    rope,
    spec::{AttentionSpec, DecoderSpec, LayerSpec, NormPlacement, QkNorm},
};

pub(super) fn spec(config: &Config) -> DecoderSpec {
    let sizes = Sizes::read(config, 2048, 1e-5);
    let bias = config.flag_or("attention_bias", false);
    let norms = QkNorm::Whole;
    let attention =
        AttentionSpec { input_bias: bias, output_bias: bias, qk_norm: norms, ..sizes.attention() };
    let mlp = sizes.mlp(activation(config, "silu"));
    let layer = LayerSpec { attention, mlp, norms: NormPlacement::After };
    let rope = rope::read(config, sizes.head_dim, 10_000.0);
    let tied = config.flag_or("tie_word_embeddings", false);
    sizes.decoder(config, vec![rope], vec![layer; sizes.layers], tied)
}
