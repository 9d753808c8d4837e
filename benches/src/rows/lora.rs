//! Adapters: x · Aᵀ · Bᵀ, as the earlier crate measured it.
//!
//! M: rows, K: inputs, N: outputs, r: rank.

use anyhow::Result;
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
    let scaling = [4, 8, 16, 32, 64];
    let scaling =
        scaling.map(|rank| delta(format!("lora_rank_scaling/forward/rank_{rank}"), [2, 32, 1024], rank));
    forward.into_iter().chain(scaling).collect()
}

/// The delta of a square layer for `shape [.., K]`.
fn delta(id: String, shape: [usize; 3], rank: usize) -> Row {
    let width = shape[2];
    let rows = shape[0] * shape[1];
    Row::new(id, work(rows, width, rank), move |bench| {
        let (x, adapter) = (bench.random(shape.to_vec())?, adapter(bench, width, rank)?);
        Ok(Call::new(move || lora_delta(&x, &adapter)))
    })
}

/// x, A, B and the result touched once; two products.
fn work(rows: usize, width: usize, rank: usize) -> Work {
    Work::new(4 * (2 * rows * width + 2 * rank * width), 2 * rows * rank * 2 * width)
}

fn adapter(bench: &Bench, width: usize, rank: usize) -> Result<LoraAdapter> {
    Ok(LoraAdapter { a: bench.random((rank, width))?, b: bench.random((width, rank))?, scale: 2. })
}
