//! One segment of the vocabulary: its part of each token's softmax and gradient.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::matrices;
use super::{COLUMNS, Chunk, Job, padded, tile};
use crate::{
    linear::microkernel::{Left, multiply, tile_columns},
    parts::Parts,
    scratch::with_scratch,
    simd::{Element, Simd, dispatch, math},
    view::Floats,
};

/// How far logits may exceed the reference of their exponentials before all sums are scaled to a new one.
const MARGIN: f32 = 16.;

/// What a segment knows of a token's logits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Statistics {
    /// The reference of the exponentials.
    pub(super) maximum: f32,
    /// `Σ exp(logit − maximum)`
    pub(super) sum: f32,
    /// `Σ logit`
    pub(super) total: f32,
    /// The target's logit, in the segment that has it.
    pub(super) target: f32,
}

impl Statistics {
    pub(super) const EMPTY: Self = Self { maximum: f32::NEG_INFINITY, sum: 0., total: 0., target: 0. };
}

/// The sums of one segment: of each token, `Σ exp(logit − maximum) · slope · w`, and with label smoothing
/// `Σ slope · w`, where the slope is that of the soft cap. Without a cap the latter is the same for all tokens.
///
/// Stored by tiles of the microkernel: `[D / columns, rows, columns]`.
#[derive(Clone, Copy)]
pub(super) struct SumShape {
    /// Rows of the first kind.
    pub(super) tokens: usize,
    /// Rows of the second kind.
    pub(super) even: usize,
    /// D, padded.
    width: usize,
}

impl SumShape {
    pub(super) fn new(job: &Job<'_>, tokens: usize, has_gradient: bool) -> Self {
        if !has_gradient {
            return Self { tokens: 0, even: 0, width: 0 };
        }
        let even = match (job.params.label_smoothing > 0., job.params.soft_cap) {
            (false, _) => 0,
            (true, None) => 1,
            (true, Some(_)) => tokens,
        };
        Self { tokens, even, width: padded(job.width) }
    }

    /// Floats of both kinds.
    pub(super) fn total(self) -> usize {
        (self.tokens + self.even) * self.width
    }

    /// Where the second kind begins.
    pub(super) fn first(self) -> usize {
        self.tokens * self.width
    }
}

/// Goes through the columns of a segment. The sums are zero at first.
pub(super) fn add_segment(
    job: &Job<'_>,
    chunk: &Chunk<'_>,
    columns: Range<usize>,
    shape: SumShape,
    statistics: &mut [Statistics],
    sums: &mut [f32],
) {
    let weights = tile::weights_length(chunk, job.width).max(COLUMNS * COLUMNS);
    with_scratch(weights, |weights| {
        with_scratch((chunk.tokens + shape.even) * COLUMNS, |tiles| {
            let (exponentials, slopes) = tiles.split_at_mut(chunk.tokens * COLUMNS);
            if job.params.soft_cap.is_none() {
                slopes.fill(1.);
            }
            let (sums, even) = sums.split_at_mut(shape.first());
            let mut work = Work { job, chunk, shape, weights, exponentials, slopes, sums, even };
            add_tiles(&mut work, columns, statistics);
        });
    });
}

struct Work<'a> {
    job: &'a Job<'a>,
    chunk: &'a Chunk<'a>,
    shape: SumShape,
    /// Packed weights.
    weights: &'a mut [f32],
    /// `[tokens, COLUMNS]`: products, logits, and in the end the factors of the weights.
    exponentials: &'a mut [f32],
    /// `[even, COLUMNS]`
    slopes: &'a mut [f32],
    sums: &'a mut [f32],
    even: &'a mut [f32],
}

dispatch! {
    fn add_tiles(work: &mut Work<'_>, columns: Range<usize>, statistics: &mut [Statistics]) = add_tiles_with;
}

#[inline(always)]
fn add_tiles_with<S: Simd>(
    simd: S,
    work: &mut Work<'_>,
    columns: Range<usize>,
    statistics: &mut [Statistics],
) {
    for column in columns.clone().step_by(COLUMNS) {
        let place = (column, COLUMNS.min(columns.end - column));
        tile::products(simd, work.job, work.chunk, place, work.weights, work.exponentials);
        for (token, statistics) in statistics.iter_mut().enumerate() {
            add_row(simd, work, place, token, statistics);
        }
        if work.shape.tokens > 0 {
            add_products(simd, work, place);
        }
    }
}

/// Turns a token's products into what the weights are multiplied with.
#[inline(always)]
fn add_row<S: Simd>(
    simd: S,
    work: &mut Work<'_>,
    (column, columns): (usize, usize),
    token: usize,
    statistics: &mut Statistics,
) {
    let job = work.job;
    let row = &mut work.exponentials[token * COLUMNS..(token + 1) * COLUMNS];
    let (largest, total) = tile::finish(simd, job, (column, columns), row);
    statistics.total += total;
    let target = job.targets[work.chunk.first + token] as usize;
    if (column..column + columns).contains(&target) {
        statistics.target = row[target - column];
    }
    if largest > statistics.maximum + MARGIN {
        if statistics.maximum > f32::NEG_INFINITY {
            let factor = (statistics.maximum - largest).exp();
            statistics.sum *= factor;
            scale_row(simd, work.sums, (work.shape.tokens, token), factor);
        }
        statistics.maximum = largest;
    }
    let reference = simd.splat(statistics.maximum);
    let mut sum = simd.splat(0.);
    let row = &mut row[..columns.next_multiple_of(S::LANES)];
    let has_slopes = work.shape.even > 1 || (work.shape.even == 1 && job.params.soft_cap.is_some());
    for start in (0..row.len()).step_by(S::LANES) {
        // SAFETY: the row has whole vectors, and so have the slopes.
        unsafe {
            let place = row.as_mut_ptr().add(start);
            let value = simd.load(place);
            let mut e = math::weight(simd, simd.sub(value, reference));
            sum = simd.add(sum, e);
            if let Some(cap) = job.params.soft_cap {
                let slope = tile::cap_slope(simd, value, cap);
                e = simd.mul(e, slope);
                if has_slopes {
                    simd.store(work.slopes[token * COLUMNS + start..][..S::LANES].as_mut_ptr(), slope);
                }
            }
            simd.store(place, e);
        }
    }
    statistics.sum += simd.reduce_add(sum);
}

/// Scales one of the sums' rows.
#[inline(always)]
fn scale_row<S: Simd>(simd: S, sums: &mut [f32], (rows, row): (usize, usize), factor: f32) {
    let columns = tile_columns::<S>();
    if sums.is_empty() {
        return;
    }
    let factor = simd.splat(factor);
    for tile in sums.chunks_exact_mut(rows * columns) {
        for start in (0..columns).step_by(S::LANES) {
            let place = tile[row * columns + start..][..S::LANES].as_mut_ptr();
            // SAFETY: the slice has a vector's length.
            unsafe { simd.store(place, simd.mul(simd.load(place), factor)) };
        }
    }
}

/// Adds the products of both kinds of factors with the weight's rows `column..column + columns`.
#[inline(always)]
fn add_products<S: Simd>(simd: S, work: &mut Work<'_>, (column, columns): (usize, usize)) {
    let (shape, width, size) = (work.shape, work.job.width, tile_columns::<S>());
    #[cfg(target_arch = "x86_64")]
    if work.chunk.in_matrices {
        let Work { job, weights, exponentials, slopes, sums, even, .. } = work;
        let kinds = [
            matrices::Kind { factors: exponentials, sums, rows: shape.tokens },
            matrices::Kind { factors: slopes, sums: even, rows: shape.even },
        ];
        return matrices::add_products(job, (column, columns), weights, kinds);
    }
    assert!(work.weights.len() >= COLUMNS * size && width <= shape.width);
    let rows = column * width..(column + columns) * width;
    for (tile, start) in (0..width).step_by(size).enumerate() {
        match work.job.weight {
            Floats::F32(weight) => copy_tile(simd, &weight[rows.clone()], width, start, work.weights),
            Floats::Bf16(weight) => copy_tile(simd, &weight[rows.clone()], width, start, work.weights),
            Floats::F16(weight) => copy_tile(simd, &weight[rows.clone()], width, start, work.weights),
        }
        let kinds = [
            (&*work.exponentials, &mut *work.sums, shape.tokens, work.chunk.blocks),
            (&*work.slopes, &mut *work.even, shape.even, work.chunk.blocks.min(shape.even)),
        ];
        for (factors, sums, rows, blocks) in kinds {
            assert!(factors.len() == rows * COLUMNS && sums.len() == rows * shape.width);
            for Range { start: first, end } in (Parts { whole: rows, count: blocks }).ranges() {
                // SAFETY: both have these rows, the sums in each of their tiles.
                unsafe {
                    let a = factors.as_ptr().add(first * COLUMNS);
                    let a = Left { start: a, row_stride: COLUMNS, step_stride: 1 };
                    let c = sums.as_mut_ptr().add((tile * rows + first) * size);
                    multiply(simd, end - first, columns, a, (work.weights.as_ptr(), size), (c, size), true);
                }
            }
        }
    }
}

/// Columns `start..` of some rows of the weight, as wide as a tile, widened and side by side.
#[inline(always)]
fn copy_tile<S: Simd, W: Element>(simd: S, rows: &[W], width: usize, start: usize, to: &mut [f32]) {
    let size = tile_columns::<S>();
    let count = size.min(width - start);
    for (row, to) in rows.chunks_exact(width).zip(to.chunks_exact_mut(size)) {
        // SAFETY: both slices have what is accessed; a prefetch is harmless anywhere.
        unsafe {
            let from = row.as_ptr().add(start);
            if count == size {
                simd.store(to.as_mut_ptr(), W::load(simd, from));
                simd.store(to.as_mut_ptr().add(S::LANES), W::load(simd, from.add(S::LANES)));
                // The next tile.
                simd.prefetch(from.wrapping_add(size));
                simd.prefetch(from.wrapping_add(size + S::LANES));
            } else {
                let left = count.min(S::LANES);
                simd.store(to.as_mut_ptr(), W::load_first(simd, from, left));
                let right = W::load_first(simd, from.wrapping_add(S::LANES), count - left);
                simd.store(to.as_mut_ptr().add(S::LANES), right);
            }
        }
    }
}
