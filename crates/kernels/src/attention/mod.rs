//! Grouped-query attention.
//!
//! [`attention`]: causal, of new rows against the cached keys and values of their sequences; for inference.
//! [`packed_attention`]: of packed sequences to themselves, with gradients; for training and encoders.
//!
//! One call of [`attention`] serves a whole ragged batch: long prefills, chunks of prefills and single decode rows side by
//! side. Keys and values live in chunks (pages) owned by each sequence; nothing is concatenated and no
//! head is repeated. H: query heads, G: key/value heads, D: head size.

mod check;
mod cpu;
mod gpu;
mod packed;
#[cfg(test)]
mod reference;
mod write;

use std::ops::Range;

use candle_core::{Result, Tensor};
pub use packed::{PackedAttention, packed_attention, packed_attention_backward, packed_attention_forward};

use crate::{
    device::runs_kernels,
    trace::{self, Work},
};

/// What is the same for all rows of a call.
#[derive(Debug, Clone, Copy)]
pub struct AttentionParams {
    /// Multiplies the scores (usually `1/√D`).
    pub scale: f32,
    /// `cap · tanh(score / cap)` before the mask (gemma2).
    pub soft_cap: Option<f32>,
    /// A query sees only the last `window` positions, itself included.
    pub window: Option<usize>,
}

/// Keys and values of consecutive positions.
#[derive(Debug, Clone)]
pub struct KvChunk {
    /// `[chunk, G, D]`, contiguous; the chunk may be longer than what is filled.
    pub keys: Tensor,
    /// `[chunk, G, D]`
    pub values: Tensor,
}

/// The rows of one sequence inside a batch, and its cache. The new rows' own keys are already in the cache.
#[derive(Debug)]
pub struct Segment<'a> {
    /// Rows of `queries` that belong to this sequence: the last `rows.len()` positions before `end`.
    pub rows: Range<usize>,
    /// Position of the first element of the first chunk.
    pub start: usize,
    /// One past the last cached position; the cache holds positions `start..end`.
    pub end: usize,
    /// All of one length, except that nothing beyond `end` is read.
    pub chunks: Vec<&'a KvChunk>,
}

/// `queries [rows, H, D] → [rows, H, D]`. The rows of the segments follow one another and cover all rows.
pub fn attention(queries: &Tensor, segments: &[Segment<'_>], params: AttentionParams) -> Result<Tensor> {
    let _op = trace::op("attention", queries.device(), || work(queries, segments, params));
    check::check(queries, segments, params)?;
    if segments.is_empty() {
        return queries.zeros_like();
    }
    if !runs_kernels(queries.device()) {
        return cpu::attention(queries, segments, params);
    }
    gpu::cached(queries, segments, params)
}

/// Keys and values are read once for each segment, as far back as its rows see.
fn work(queries: &Tensor, segments: &[Segment<'_>], params: AttentionParams) -> Work {
    let size = queries.dtype().size_in_bytes() as u64;
    let width = queries.dims().iter().skip(1).product::<usize>() as u64;
    let window = params.window.unwrap_or(usize::MAX);
    segments.iter().fold(Work::moving(&[queries, queries]), |sum, segment| {
        let (rows, length) = (segment.rows.len(), segment.end.saturating_sub(segment.start));
        let first = length.saturating_sub(rows);
        let read = length - first.saturating_sub(window.saturating_sub(1)).min(length);
        let seen: usize = (first..length).map(|position| (position + 1).min(window)).sum();
        let key_width =
            segment.chunks.first().map_or(0, |chunk| chunk.keys.dims().iter().skip(1).product::<usize>());
        sum.and(2 * (read * key_width) as u64 * size, 4 * seen as u64 * width)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod suite;
#[cfg(test)]
mod tests;
