//! A tile of logits: all tokens of a chunk by a few columns.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::matrices;
use super::{COLUMNS, Chunk, Job};
use crate::{
    linear::microkernel::{Left, multiply, pack, tile_columns},
    parts::Parts,
    simd::{Element, Simd, dispatch, math},
    view::Floats,
};

/// The most steps along D that are packed at once: so much of the weight stays in the second-level cache.
const DEPTH: usize = 1024;

/// Floats of the scratch memory for packed weights.
pub(super) fn weights_length(chunk: &Chunk<'_>, width: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    if chunk.in_matrices {
        return matrices::weights_length(width);
    }
    debug_assert!(!chunk.in_matrices);
    depth(width) * COLUMNS
}

fn depth(width: usize) -> usize {
    Parts::at_most(DEPTH, width).largest()
}

dispatch! {
    /// Packs a block of tokens for the broadcasts of the microkernel: `[D, tokens]`.
    pub(super) fn pack_block(from: &[f32], width: usize, tokens: usize, to: &mut [f32]) = pack_block_with;
}

#[inline(always)]
fn pack_block_with<S: Simd>(simd: S, from: &[f32], width: usize, tokens: usize, to: &mut [f32]) {
    assert!(tokens <= S::LANES && from.len() == tokens * width && to.len() == from.len());
    // SAFETY: the lengths that were checked.
    unsafe { pack(simd, from.as_ptr(), width, tokens, width, to.as_mut_ptr(), tokens) }
}

/// `tile[token · COLUMNS + i] = hidden[token] · weight[column + i]` for `columns` columns, rounded up to whole tiles
/// of the microkernel; those too many are zero.
#[inline(always)]
pub(super) fn products<S: Simd>(
    simd: S,
    job: &Job<'_>,
    chunk: &Chunk<'_>,
    (column, columns): (usize, usize),
    weights: &mut [f32],
    tile: &mut [f32],
) {
    #[cfg(target_arch = "x86_64")]
    if chunk.in_matrices {
        return matrices::products(job, chunk, (column, columns), weights, tile);
    }
    let (width, depth) = (job.width, depth(job.width));
    let panels = columns.div_ceil(tile_columns::<S>());
    assert!(weights.len() >= weights_length(chunk, width) && tile.len() >= chunk.tokens * COLUMNS);
    assert!(chunk.packed.len() == chunk.tokens * width && column + columns <= job.vocabulary);
    let mut start = 0;
    loop {
        let count = depth.min(width - start);
        match job.weight {
            Floats::F32(w) => pack_weights(simd, w, width, (column, columns), (start, count), weights),
            Floats::Bf16(w) => pack_weights(simd, w, width, (column, columns), (start, count), weights),
            Floats::F16(w) => pack_weights(simd, w, width, (column, columns), (start, count), weights),
        }
        for Range { start: first, end } in chunk.even_blocks().ranges() {
            let tokens = end - first;
            for panel in 0..panels {
                // SAFETY: the lengths that were checked above.
                unsafe {
                    let a = chunk.packed.as_ptr().add(first * width + start * tokens);
                    let a = Left { start: a, row_stride: 1, step_stride: tokens };
                    let b = weights.as_ptr().add(panel * count * tile_columns::<S>());
                    let c = tile.as_mut_ptr().add(first * COLUMNS + panel * tile_columns::<S>());
                    multiply(simd, tokens, count, a, (b, tile_columns::<S>()), (c, COLUMNS), start > 0);
                }
            }
        }
        start += count;
        if start == width {
            break;
        }
    }
}

/// Packs steps `start..start + count` of the weight's rows `column..column + columns`, by panels.
#[inline(always)]
fn pack_weights<S: Simd, W: Element>(
    simd: S,
    weight: &[W],
    width: usize,
    (column, columns): (usize, usize),
    (start, count): (usize, usize),
    to: &mut [f32],
) {
    let stride = tile_columns::<S>();
    let panels = columns.div_ceil(stride);
    assert!(to.len() >= panels * count * stride && start + count <= width);
    assert!((column + columns) * width <= weight.len());
    for half in 0..2 * panels {
        let first = half * S::LANES;
        let rows = columns.saturating_sub(first).min(S::LANES);
        // SAFETY: `rows` rows of the weight follow from `column + first` on; each half of a panel has room for
        // `LANES` of its columns.
        unsafe {
            let from = weight.as_ptr().wrapping_add((column + first) * width + start);
            let to = to.as_mut_ptr().add(half / 2 * count * stride + half % 2 * S::LANES);
            pack(simd, from, width, rows, count, to, stride);
        }
    }
}

/// Makes logits of a token's products, in place, and returns the largest and the sum of all. Up to a whole vector, the
/// places behind `columns` become −∞.
#[inline(always)]
pub(super) fn finish<S: Simd>(
    simd: S,
    job: &Job<'_>,
    (column, columns): (usize, usize),
    row: &mut [f32],
) -> (f32, f32) {
    let mut largest = simd.splat(f32::NEG_INFINITY);
    let mut total = simd.splat(0.);
    let scale = simd.splat(job.params.logit_scale);
    let bias = job.bias.as_ref().map(|bias| &bias[column..column + columns]);
    let row = &mut row[..columns.next_multiple_of(S::LANES)];
    for start in (0..columns).step_by(S::LANES) {
        let count = S::LANES.min(columns - start);
        // SAFETY: the row has whole vectors; the bias has `columns` numbers.
        unsafe {
            let mut value = simd.load(row.as_ptr().add(start));
            if let Some(bias) = bias {
                value = simd.add(value, simd.load_first(bias.as_ptr().add(start), count));
            }
            value = simd.mul(value, scale);
            if let Some(cap) = job.params.soft_cap {
                let scaled = simd.mul(value, simd.splat(1. / cap));
                value = simd.mul(math::tanh(simd, scaled), simd.splat(cap));
            }
            if count == S::LANES {
                total = simd.add(total, value);
            } else {
                let (lane, end) = (simd.load(LANE.as_ptr()), simd.splat(count as f32));
                total = simd.add(total, simd.select_less(lane, end, value, simd.splat(0.)));
                value = simd.select_less(lane, end, value, simd.splat(f32::NEG_INFINITY));
            }
            largest = simd.max(largest, value);
            simd.store(row.as_mut_ptr().add(start), value);
        }
    }
    (simd.reduce_max(largest), simd.reduce_add(total))
}

/// The number of each lane.
const LANE: [f32; 16] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];

/// The derivative of the soft cap at a capped logit.
#[inline(always)]
pub(super) fn cap_slope<S: Simd>(simd: S, value: S::Vector, cap: f32) -> S::Vector {
    let share = simd.mul(value, simd.splat(1. / cap));
    simd.sub(simd.splat(1.), simd.mul(share, share))
}
