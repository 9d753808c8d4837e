//! The row norms of a weight with its adapter: the sum `W + scale · B · A` exists one tile at a time.

use super::products::Blocks;
use crate::{
    linear::microkernel::{multiply, tile, tile_columns, tile_rows},
    output::{Output, filled},
    pool,
    scratch::with_scratch,
    simd::{Element, Simd, dispatch, for_vectors, load, store},
    view::Floats,
};

/// Rows of a task: they share the widened A.
const ROWS: usize = 56;

/// `‖W + scale · B · A‖` by rows. W `[N, K]`, A `[r, K]`, B `[N, r]`.
pub(super) fn row_norms(
    weight: Floats<'_>,
    a: &[f32],
    b: &[f32],
    scale: f32,
    rank: usize,
    inputs: usize,
    outputs: usize,
) -> Vec<f32> {
    let run = |to: Output<f32>| {
        pool::for_each(outputs.div_ceil(ROWS), &|task| {
            let (first, end) = (task * ROWS, outputs.min((task + 1) * ROWS));
            let b = &b[first * rank..end * rank];
            // SAFETY: each task has rows of its own.
            let norms = unsafe { std::slice::from_raw_parts_mut(to.at(first), end - first) };
            let (most, panel) = tile();
            with_scratch((rank + most) * panel + b.len(), |scratch| {
                match weight.slice(first * inputs..end * inputs) {
                    Floats::F32(w) => norms_of(w, a, b, scale, rank, norms, scratch),
                    Floats::Bf16(w) => norms_of(w, a, b, scale, rank, norms, scratch),
                    Floats::F16(w) => norms_of(w, a, b, scale, rank, norms, scratch),
                }
            });
        });
    };
    // SAFETY: every row is written.
    unsafe { filled(outputs, run) }
}

dispatch! {
    fn norms_of<W: Element>(
        weight: &[W], a: &[f32], b: &[f32], scale: f32, rank: usize, norms: &mut [f32],
        scratch: &mut [f32],
    ) = norms_of_with;
}

/// Norms of the rows of `weight`, as many as `norms` has.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn norms_of_with<S: Simd, W: Element>(
    simd: S,
    weight: &[W],
    a: &[f32],
    b: &[f32],
    scale: f32,
    rank: usize,
    norms: &mut [f32],
    scratch: &mut [f32],
) {
    let (most, panel) = (tile_rows::<S>(), tile_columns::<S>());
    let (factor, scratch) = scratch.split_at_mut(rank * panel);
    let (packed, tile) = scratch.split_at_mut(b.len());
    assert_eq!(tile.len(), most * panel);
    let rows = norms.len();
    let inputs = weight.len() / rows;
    let blocks = Blocks::new(simd, rows);
    blocks.pack(simd, b, rank, scale, packed);
    norms.fill(0.);
    for column in (0..inputs).step_by(panel) {
        let count = panel.min(inputs - column);
        for step in 0..rank {
            copy_row(simd, &a[step * inputs + column..][..count], &mut factor[step * panel..][..panel]);
        }
        for block in blocks.ranges() {
            for (index, row) in block.clone().enumerate() {
                let weight = &weight[row * inputs + column..][..count];
                copy_row(simd, weight, &mut tile[index * panel..][..panel]);
            }
            // SAFETY: the block has these rows, the factor `rank` of a panel, the tile as many as a block.
            unsafe {
                let b = Blocks::left(&block, packed, rank);
                let to = (tile.as_mut_ptr(), panel);
                multiply(simd, block.len(), rank, b, (factor.as_ptr(), panel), to, true);
            }
            for (norm, tile) in norms[block].iter_mut().zip(tile.chunks_exact(panel)) {
                let mut squares = simd.splat(0.);
                for_vectors!(S, panel, |column, count| {
                    let values = load(simd, tile, column, count);
                    squares = simd.fma(values, values, squares);
                });
                *norm += simd.reduce_add(squares);
            }
        }
    }
    norms.iter_mut().for_each(|norm| *norm = norm.sqrt());
}

/// Widens a row, filled up with zeros.
#[inline(always)]
fn copy_row<S: Simd, W: Element>(simd: S, from: &[W], to: &mut [f32]) {
    for_vectors!(S, to.len(), |column, count| {
        let present = count.min(from.len().saturating_sub(column));
        // SAFETY: `present` numbers are there from that column on, or none.
        let values = unsafe { W::load_first(simd, from.as_ptr().wrapping_add(column), present) };
        store(simd, to, column, count, values);
    });
}
