//! Adapters: scale · x · Aᵀ · Bᵀ.
//!
//! M: rows, K: inputs, N: outputs, r: rank.

use anyhow::Result;
use candle_core::Tensor;
use metal_candle_kernels::lora::{LoraAdapter, lora_delta};

use crate::{Bench, Call, Row, Work};

pub(super) fn rows() -> Vec<Row> {
    let forward = [
        ("small_512x512_r8", 512, 8),
        ("medium_1024x1024_r8", 1024, 8),
        ("large_2048x2048_r8", 2048, 8),
        ("small_512x512_r16", 512, 16),
    ];
    let forward = forward
        .map(|(name, width, rank)| delta(format!("lora_forward/forward/{name}"), [4, 16, width], rank));
    let ranks = [4, 8, 16, 32, 64];
    let scaling =
        ranks.map(|rank| delta(format!("lora_rank_scaling/forward/rank_{rank}"), [2, 32, 1024], rank));
    // There is no lazy mode: this is what a user calls, compared with the better of the two modes that were published.
    let eager = [
        delta("lazy_vs_eager/lora_4x512".to_owned(), [1, 4, 512], 8),
        delta("lazy_vs_eager_lora/forward_4x16x512".to_owned(), [4, 16, 512], 8),
    ];
    let fused = [delta("fused_lora/lora_fused".to_owned(), [1, 128, 512], 8), unfused()];
    forward.into_iter().chain(scaling).chain(eager).chain(fused).collect()
}

/// The least that a delta of a square layer moves and computes: x, A, B and the result once, two products.
pub(super) fn work(rows: usize, width: usize, rank: usize) -> Work {
    Work::new(4 * (2 * rows * width + 2 * rank * width), 2 * rows * rank * 2 * width)
}

pub(super) fn adapter(bench: &Bench, width: usize, rank: usize) -> Result<LoraAdapter> {
    Ok(LoraAdapter { a: bench.random((rank, width))?, b: bench.random((width, rank))?, scale: 2. })
}

/// The delta of a square layer for `shape [.., K]`.
fn delta(id: String, shape: [usize; 3], rank: usize) -> Row {
    let width = shape[2];
    Row::new(id, work(shape[0] * shape[1], width, rank), move |bench| {
        let (x, adapter) = (bench.random(shape.to_vec())?, adapter(bench, width, rank)?);
        Ok(Call::new(move || lora_delta(&x, &adapter)))
    })
}

/// The same delta as `lora_fused` in three of candle's ops.
fn unfused() -> Row {
    Row::new("fused_lora/lora_unfused", work(128, 512, 8), |bench| {
        let (x, adapter) = (bench.random((1, 128, 512))?, adapter(bench, 512, 8)?);
        let [a, b] = [&adapter.a, &adapter.b].map(|factor| factor.t().and_then(|factor| factor.contiguous()));
        let (a, b): (Tensor, Tensor) = (a?, b?);
        Ok(Call::new(move || x.broadcast_matmul(&a)?.broadcast_matmul(&b)?.affine(2., 0.)))
    })
}
