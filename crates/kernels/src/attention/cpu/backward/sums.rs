//! The passes before and after the tiles: `Σ out · d_out` of each row, and sums of queries' gradients.

use std::ops::Range;

use super::{
    Call,
    plan::{Plan, tokens_written_first},
};
use crate::{
    output::Output,
    simd::{Simd, for_vectors, load, store},
};

/// `deltas [H, T] = Σ out · d_out` over D, for some rows.
///
/// # Safety
/// Nobody else uses the deltas of these rows.
#[inline(always)]
pub(super) unsafe fn deltas_with<S: Simd>(simd: S, call: &Call<'_>, rows: Range<usize>, deltas: Output<f32>) {
    for row in rows {
        for head in 0..call.heads {
            let out = call.out.head(row, head, call.head_dim);
            let d_out = call.d_out.head(row, head, call.head_dim);
            let mut sum = simd.splat(0.);
            for_vectors!(S, call.head_dim, |column, count| {
                sum = simd.fma(load(simd, out, column, count), load(simd, d_out, column, count), sum);
            });
            // SAFETY: a row and a head of the call; the caller's promise.
            unsafe { *deltas.at(head * call.rows + row) = simd.reduce_add(sum) };
        }
    }
}

/// Adds the sums of all ranges but the first to the gradients of some tokens' queries.
///
/// # Safety
/// All tasks have run, and nobody else uses these tokens' gradients.
#[inline(always)]
pub(super) unsafe fn add_with<S: Simd>(
    simd: S,
    call: &Call<'_>,
    plan: &Plan,
    segment: usize,
    tokens: Range<usize>,
    partials: Output<f32>,
    d_queries: Output<f32>,
) {
    let (first_row, extent) = &call.segments[segment];
    let width = extent.share * call.head_dim;
    let written = tokens_written_first(plan, segment);
    for token in tokens {
        for group in 0..call.groups {
            let start = ((first_row + token) * call.groups + group) * width;
            // SAFETY: the rows of this token and group, `share` heads side by side; the caller's promise.
            let total = unsafe { std::slice::from_raw_parts_mut(d_queries.at(start), width) };
            if !written.contains(&token) {
                total.fill(0.);
            }
            for (range, partial) in plan.sums_of(segment).filter(|(range, _)| range.tokens.contains(&token)) {
                let row = group * range.tokens.len() + token - range.tokens.start;
                // SAFETY: the task of this range and group wrote this row of its sums.
                let part = unsafe { std::slice::from_raw_parts(partials.at(partial + row * width), width) };
                for_vectors!(S, width, |column, count| {
                    let sum = simd.add(load(simd, total, column, count), load(simd, part, column, count));
                    store(simd, total, column, count, sum);
                });
            }
        }
    }
}
