//! The shape of Qwen2.5-0.5B, and the least that a pass through it has to move and compute.

use anyhow::Result;
use metal_candle::model::{Config, arch, spec::DecoderSpec};

use crate::Work;

pub(crate) const HIDDEN: usize = 896;
pub(crate) const INTERMEDIATE: usize = 4864;
pub(crate) const LAYERS: usize = 24;
pub(crate) const HEADS: usize = 14;
pub(crate) const KV_HEADS: usize = 2;
pub(crate) const HEAD_DIM: usize = 64;
pub(crate) const VOCABULARY: usize = 151_936;

/// Weights of one layer that are multiplied with every row.
const LAYER_WEIGHTS: usize = HIDDEN * (2 * HEADS + 2 * KV_HEADS) * HEAD_DIM + 3 * HIDDEN * INTERMEDIATE;

pub(crate) fn spec() -> Result<DecoderSpec> {
    read(&config())
}

/// Its `config.json`.
pub(crate) fn config() -> String {
    shaped(HIDDEN, INTERMEDIATE, HEADS, VOCABULARY)
}

/// As little model as there can be around the same KV cache.
pub(crate) fn cache_spec() -> Result<DecoderSpec> {
    read(&shaped(KV_HEADS * HEAD_DIM, HEAD_DIM, KV_HEADS, HEAD_DIM))
}

fn read(config: &str) -> Result<DecoderSpec> {
    Ok(arch::read(&Config::from_slice(config.as_bytes())?, &[])?)
}

fn shaped(hidden: usize, intermediate: usize, heads: usize, vocabulary: usize) -> String {
    format!(
        r#"{{"model_type": "qwen2", "vocab_size": {vocabulary}, "hidden_size": {hidden},
            "intermediate_size": {intermediate}, "num_hidden_layers": {LAYERS}, "num_attention_heads": {heads},
            "num_key_value_heads": {KV_HEADS}, "max_position_embeddings": 32768, "rope_theta": 1e6,
            "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": true}}"#
    )
}

/// A forward pass of `sequences`, each with `rows` new tokens after `context` older ones, and logits for the last row of
/// each: all weights read once in bf16, the f32 cache read and written.
pub(crate) fn forward(sequences: usize, rows: usize, context: usize) -> Work {
    let all = sequences * rows;
    let weights = LAYERS * LAYER_WEIGHTS + VOCABULARY * HIDDEN;
    let cache = LAYERS * sequences * (context + rows) * 2 * KV_HEADS * HEAD_DIM;
    let pairs = sequences * (rows * context + rows * (rows + 1) / 2);
    let flops = 2 * all * LAYERS * LAYER_WEIGHTS
        + 4 * LAYERS * pairs * HEADS * HEAD_DIM
        + 2 * sequences * VOCABULARY * HIDDEN;
    Work::new(2 * weights + 4 * cache, flops).yields("tokens", all)
}

/// Forward and loss of one sequence with a target in each row.
pub(crate) fn loss(rows: usize) -> Work {
    let last_only = forward(1, rows, 0);
    let head = 2 * VOCABULARY * HIDDEN * (rows - 1);
    Work { flops: last_only.flops.map(|flops| flops + head as u64), ..last_only }
}

/// Loss and gradients of adapters, all weights frozen: each product once forward and once back, the products of attention
/// twice back; the weights are read twice.
pub(crate) fn loss_and_gradients(rows: usize) -> Work {
    let forward = loss(rows);
    Work {
        bytes: forward.bytes.map(|bytes| 2 * bytes),
        flops: forward.flops.map(|flops| 2 * flops),
        ..forward
    }
}

/// Tokens spread over the vocabulary, the same every time.
pub(crate) fn tokens(count: usize) -> Vec<u32> {
    let token = |index: u64| (index.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) % VOCABULARY as u64;
    (0..count as u64).map(|index| token(index) as u32).collect()
}
