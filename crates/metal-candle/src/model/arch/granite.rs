//! Granite: llama with a multiplier on embeddings, scores, residuals and logits.

use super::llama;
use crate::model::{
    config::Config,
    spec::{AttentionSpec, DecoderSpec, HeadSpec},
};

pub(super) fn spec(config: &Config) -> DecoderSpec {
    let mut spec = llama::spec(config);
    let scale = config.positive_or("attention_multiplier", 1.0) as f32;
    for layer in &mut spec.layers {
        layer.attention = AttentionSpec { scale, ..layer.attention };
    }
    DecoderSpec {
        embedding_scale: config.positive_or("embedding_multiplier", 1.0) as f32,
        residual_scale: config.positive_or("residual_multiplier", 1.0) as f32,
        head: HeadSpec { scale: 1.0 / config.positive_or("logits_scaling", 1.0) as f32, ..spec.head },
        ..spec
    }
}
