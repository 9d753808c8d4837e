//! Gradients of an adapter. With `g = scale · dy · B [M, r]`:
//! `dx += g · A`, `dA += gᵀ · x`, `dB += scale · dyᵀ · (x · Aᵀ)`.

use std::ops::Range;

use super::products::{Base, Down, Order, Up, down, up};
use crate::{
    linear::microkernel::{Left, multiply, pack, tile_columns, tile_rows},
    output::{Output, filled},
    parts::Parts,
    pool::{self, Disjoint},
    scratch::with_scratch,
    simd::{Element, Simd, dispatch, for_vectors, load, store},
    view::Floats,
};

/// Columns of a task that sums over all rows.
const COLUMNS: usize = 64;
/// Rows that are summed before the next columns: their pages stay in the TLB, their lines in a cache.
const ROWS: usize = 256;
/// Columns of B that a task transposes.
const TRANSPOSED: usize = 512;

/// What a backward pass reads. M: rows, K: inputs, N: outputs.
pub(super) struct Backward<'a> {
    /// `[M, K]`
    pub(super) x: &'a [f32],
    /// `[M, N]`
    pub(super) dy: &'a [f32],
    /// `x · Aᵀ [M, r]`
    pub(super) down: &'a [f32],
    /// `[r, K]`
    pub(super) a: Floats<'a>,
    /// `[N, r]`
    pub(super) b: Floats<'a>,
    pub(super) scale: f32,
    pub(super) rank: usize,
    pub(super) rows: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

impl Backward<'_> {
    /// `g = dy · B`, not scaled yet.
    pub(super) fn down_gradient(&self) -> Vec<f32> {
        let (rank, outputs) = (self.rank, self.outputs);
        let transpose = |to: Output<f32>| {
            pool::for_each(outputs.div_ceil(TRANSPOSED), &|task| {
                let (first, end) = (task * TRANSPOSED, outputs.min((task + 1) * TRANSPOSED));
                // SAFETY: each task has columns of its own.
                unsafe {
                    match self.b {
                        Floats::F32(b) => transpose_rows(b, rank, outputs, first, end, to),
                        Floats::Bf16(b) => transpose_rows(b, rank, outputs, first, end, to),
                        Floats::F16(b) => transpose_rows(b, rank, outputs, first, end, to),
                    }
                }
            });
        };
        // SAFETY: every column is written.
        let b = unsafe { filled(rank * outputs, transpose) };
        let run = |to| {
            down(&[Down { x: self.dy, rows: self.rows, factor: Floats::F32(&b), rank, to }], outputs);
        };
        // SAFETY: `down` writes every row.
        unsafe { filled(self.rows * rank, run) }
    }

    /// `dx += scale · g · A`
    pub(super) fn add_input_gradient(&self, g: &[f32], dx: &mut [f32]) {
        assert_eq!(dx.len(), self.rows * self.inputs);
        let part = Up {
            x: g,
            rows: self.rows,
            factor: self.a,
            order: Order::RankFirst,
            rank: self.rank,
            scale: self.scale,
            base: Base::InPlace,
            to: Output::new(dx.as_mut_ptr()),
        };
        up(&[part], self.inputs);
    }

    /// `dA += scale · gᵀ · x`
    pub(super) fn add_a_gradient(&self, g: &[f32], da: &mut [f32]) {
        self.outer(g, self.x, self.inputs, Order::RankFirst, da);
    }

    /// `dB += scale · dyᵀ · (x · Aᵀ)`
    pub(super) fn add_b_gradient(&self, db: &mut [f32]) {
        self.outer(self.down, self.dy, self.outputs, Order::RankLast, db);
    }

    /// `to (+)= scale · leftᵀ [r, M] · right [M, width]`, or the transpose of that. The sum over M has one order,
    /// however many threads there are.
    fn outer(&self, left: &[f32], right: &[f32], width: usize, order: Order, to: &mut [f32]) {
        let rank = self.rank;
        assert!(to.len() == rank * width && left.len() == self.rows * rank);
        assert_eq!(right.len(), self.rows * width);
        let to = Disjoint::new(to);
        pool::for_each(width.div_ceil(COLUMNS), &|task| {
            let (first, count) = (task * COLUMNS, COLUMNS.min(width - task * COLUMNS));
            with_scratch(rank * COLUMNS + ROWS * COLUMNS, |scratch| {
                let (sums, copy) = scratch.split_at_mut(rank * COLUMNS);
                sum_outer(left, rank, right, width, first..first + count, sums, copy);
                match order {
                    Order::RankFirst => {
                        for (row, sums) in sums.chunks_exact(COLUMNS).enumerate() {
                            // SAFETY: each task has columns of its own.
                            let to = unsafe { to.part(row * width + first, count) };
                            add_scaled(&sums[..count], self.scale, to);
                        }
                    }
                    Order::RankLast => {
                        // SAFETY: as above.
                        let to = unsafe { to.part(first * rank, count * rank) };
                        for (column, to) in to.chunks_exact_mut(rank.max(1)).enumerate() {
                            for (row, to) in to.iter_mut().enumerate() {
                                *to += self.scale * sums[row * COLUMNS + column];
                            }
                        }
                    }
                }
            });
        });
    }
}

dispatch! {
    unsafe fn transpose_rows<W: Element>(
        from: &[W], rank: usize, width: usize, first: usize, end: usize, to: Output<f32>,
    ) = transpose_rows_with;

    fn sum_outer(
        left: &[f32], rank: usize, right: &[f32], width: usize, columns: Range<usize>,
        sums: &mut [f32], copy: &mut [f32],
    ) = sum_outer_with;

    fn add_scaled(values: &[f32], scale: f32, to: &mut [f32]) = add_scaled_with;
}

/// `to[step · width + row] = from[row · rank + step]` for rows `first..end`.
///
/// # Safety
/// `to` is as long as `from`, and nobody else writes these places.
#[inline(always)]
unsafe fn transpose_rows_with<S: Simd, W: Element>(
    simd: S,
    from: &[W],
    rank: usize,
    width: usize,
    first: usize,
    end: usize,
    to: Output<f32>,
) {
    let mut row = first;
    while row + S::LANES <= end {
        let from = &from[row * rank..(row + S::LANES) * rank];
        // SAFETY: the slice holds these rows, and whole vectors fit into the columns.
        unsafe { pack(simd, from.as_ptr(), rank, S::LANES, rank, to.at(row), width) };
        row += S::LANES;
    }
    for row in row..end {
        for step in 0..rank {
            // SAFETY: the caller's promise.
            unsafe { *to.at(step * width + row) = from[row * rank + step].widen() };
        }
    }
}

/// `sums[row][column] = Σ left[m][row] · right[m][column]` for some columns; `sums` has rows of
/// [`COLUMNS`].
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn sum_outer_with<S: Simd>(
    simd: S,
    left: &[f32],
    rank: usize,
    right: &[f32],
    width: usize,
    columns: Range<usize>,
    sums: &mut [f32],
    copy: &mut [f32],
) {
    let (first, count) = (columns.start, columns.len());
    sums.fill(0.);
    if rank == 0 {
        return;
    }
    let panel = tile_columns::<S>();
    let blocks = Parts::at_most(tile_rows::<S>(), rank);
    assert!(sums.len() == rank * COLUMNS && copy.len() >= ROWS * panel && COLUMNS.is_multiple_of(panel));
    let rows = left.len() / rank;
    for start in (0..rows).step_by(ROWS) {
        let depth = ROWS.min(rows - start);
        for column in (0..count).step_by(panel) {
            let from = start * width + first + column;
            let (b, stride) = if column + panel <= count {
                (right[from..].as_ptr(), width)
            } else {
                copy_panel(simd, &right[from..], width, depth, count - column, copy);
                (copy.as_ptr(), panel)
            };
            for ranks in blocks.ranges() {
                // SAFETY: `left` holds `depth` rows from `start` on, `b` as many of a panel's columns.
                unsafe {
                    let a = left.as_ptr().add(start * rank + ranks.start);
                    let a = Left { start: a, row_stride: 1, step_stride: rank };
                    let c = sums.as_mut_ptr().add(ranks.start * COLUMNS + column);
                    multiply(simd, ranks.len(), depth, a, (b, stride), (c, COLUMNS), true);
                }
            }
        }
    }
}

/// `depth` rows of `count` columns, filled up with zeros to a panel.
#[inline(always)]
fn copy_panel<S: Simd>(simd: S, from: &[f32], stride: usize, depth: usize, count: usize, to: &mut [f32]) {
    let panel = tile_columns::<S>();
    for row in 0..depth {
        let from = &from[row * stride..][..count];
        let to = &mut to[row * panel..(row + 1) * panel];
        for half in 0..2 {
            let first = (half * S::LANES).min(count);
            let width = (count - first).min(S::LANES);
            // SAFETY: `width` numbers remain, and a panel's row holds two vectors.
            unsafe {
                let values = simd.load_first(from.as_ptr().add(first), width);
                simd.store(to.as_mut_ptr().add(half * S::LANES), values);
            }
        }
    }
}

#[inline(always)]
fn add_scaled_with<S: Simd>(simd: S, values: &[f32], scale: f32, to: &mut [f32]) {
    let factor = simd.splat(scale);
    for_vectors!(S, to.len(), |column, count| {
        let sum = simd.fma(load(simd, values, column, count), factor, load(simd, to, column, count));
        store(simd, to, column, count, sum);
    });
}
