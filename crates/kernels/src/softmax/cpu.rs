//! The CPU implementation: a row is read three times, twice from the cache.

use std::ops::Range;

use candle_core::{CpuStorage, Result, Storage, Tensor, bail};

use super::mask::{MaskRows, Seen};
use crate::{
    fresh::Fresh,
    output::{Output, filled},
    pool,
    simd::{Simd, dispatch, for_vectors, load, math, store},
    view::View,
};

/// Elements per task: enough to outweigh handing it to another thread.
const TASK: usize = 16 * 1024;

pub(super) fn softmax(x: &Tensor, seen: &Seen) -> Result<Fresh> {
    match seen {
        Seen::UpTo { queries, offset } => each_row(x, &|x, row, y| {
            let (seen, hidden) = y.split_at_mut(x.len().min(row % queries + offset + 1));
            // SAFETY: `x` is at least as long as `seen`.
            unsafe { softmax_row(x.as_ptr(), seen.as_mut_ptr(), seen.len()) };
            hidden.fill(0.);
        }),
        Seen::Masked(rows) => masked(x, rows),
    }
}

fn masked(x: &Tensor, rows: &MaskRows) -> Result<Fresh> {
    let (storage, layout) = rows.mask.storage_and_layout();
    let Storage::Cpu(CpuStorage::U8(mask)) = &*storage else {
        bail!("softmax: `mask` is not on the CPU, where `x` is");
    };
    let mask = &mask[layout.start_offset()..];
    each_row(x, &|x, row, y| {
        let mask = &mask[rows.row(row) * x.len()..][..x.len()];
        for ((y, x), seen) in y.iter_mut().zip(x).zip(mask) {
            *y = if *seen == 0 { f32::NEG_INFINITY } else { *x };
        }
        // SAFETY: the row is read and written where it is.
        unsafe { softmax_row(y.as_ptr(), y.as_mut_ptr(), y.len()) };
    })
}

pub(super) fn backward(y: &Tensor, dy: &Tensor) -> Result<Fresh> {
    let dy = View::new(dy);
    let dy = dy.f32s("softmax_backward: `dy`")?;
    each_row(y, &|y, row, dx| backward_row(y, &dy[row * y.len()..][..y.len()], dx))
}

/// From a row and its number to all of the row's results.
type RowFunction<'a> = &'a (dyn Fn(&[f32], usize, &mut [f32]) + Sync);

/// A result whose rows `run` computes from those of `x`.
fn each_row(x: &Tensor, run: RowFunction<'_>) -> Result<Fresh> {
    let shape = x.shape();
    let width = shape.dims().last().copied().unwrap_or(1).max(1);
    let x = View::new(x);
    let x = x.f32s("softmax: `x`")?;
    let rows = x.len() / width;
    let fill = |output: Output<f32>| {
        let part = |rows: Range<usize>| {
            for row in rows {
                // SAFETY: the result is as long as `x`, and no two rows overlap.
                let y = unsafe { std::slice::from_raw_parts_mut(output.at(row * width), width) };
                run(&x[row * width..][..width], row, y);
            }
        };
        let rows_per_task = (TASK / width).max(1);
        let tasks = rows.div_ceil(rows_per_task);
        if tasks <= 1 {
            return part(0..rows);
        }
        pool::for_each(tasks, &|task| part(task * rows_per_task..rows.min((task + 1) * rows_per_task)));
    };
    // SAFETY: every row is written.
    let y = unsafe { filled(x.len(), fill) };
    Ok(Fresh::from_vec(y, shape))
}

dispatch! {
    unsafe fn softmax_row(x: *const f32, y: *mut f32, width: usize) = softmax_row_with;
    fn backward_row(y: &[f32], dy: &[f32], dx: &mut [f32]) = backward_row_with;
}

/// Columns whose weights are added one after another, before their sum is added to that of the row.
const CHAIN: usize = 2048;

/// # Safety
/// `width` floats are readable at `x` and writable at `y`, which may be the same place.
#[inline(always)]
unsafe fn softmax_row_with<S: Simd>(simd: S, x: *const f32, y: *mut f32, width: usize) {
    // SAFETY: the caller's promise; the slice ends before anything is written.
    let largest = simd.splat(base(largest(simd, unsafe { std::slice::from_raw_parts(x, width) })));
    let mut sum = simd.splat(0.);
    for start in (0..width).step_by(CHAIN) {
        let mut part = simd.splat(0.);
        for_vectors!(S, CHAIN.min(width - start), |column, count| {
            // SAFETY: the columns are within the row.
            unsafe {
                let (from, to) = (x.add(start + column), y.add(start + column));
                if count == S::LANES {
                    let weight = math::exp(simd, simd.sub(simd.load(from), largest));
                    simd.store(to, weight);
                    part = simd.add(part, weight);
                } else {
                    let weight = math::exp(simd, simd.sub(simd.load_first(from, count), largest));
                    simd.store_first(to, weight, count);
                    part = simd.add(part, simd.load_first(to, count));
                }
            }
        });
        sum = simd.add(sum, part);
    }
    // SAFETY: all of the row is written.
    scale(simd, simd.reduce_add(sum), unsafe { std::slice::from_raw_parts_mut(y, width) });
}

/// What exponentials are taken relative to: nothing is subtracted where nothing is seen.
fn base(largest: f32) -> f32 {
    if largest == f32::NEG_INFINITY { 0. } else { largest }
}

/// In four chains, so that comparisons need not wait for each other.
#[inline(always)]
fn largest<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let mut chains = [simd.splat(f32::NEG_INFINITY); 4];
    let mut column = 0;
    while column + 4 * S::LANES <= x.len() {
        for (index, chain) in chains.iter_mut().enumerate() {
            *chain = simd.max(*chain, load(simd, x, column + index * S::LANES, S::LANES));
        }
        column += 4 * S::LANES;
    }
    while column + S::LANES <= x.len() {
        chains[0] = simd.max(chains[0], load(simd, x, column, S::LANES));
        column += S::LANES;
    }
    let [a, b, c, d] = chains;
    let most = simd.reduce_max(simd.max(simd.max(a, b), simd.max(c, d)));
    x[column..].iter().fold(most, |most, value| most.max(*value))
}

/// Divides by the sum. Where that is zero, nothing is seen, and zeros remain.
#[inline(always)]
fn scale<S: Simd>(simd: S, sum: f32, y: &mut [f32]) {
    let factor = simd.splat(if sum == 0. { 0. } else { 1. / sum });
    for_vectors!(S, y.len(), |column, count| {
        let value = simd.mul(load(simd, y, column, count), factor);
        store(simd, y, column, count, value);
    });
}

#[inline(always)]
fn backward_row_with<S: Simd>(simd: S, y: &[f32], dy: &[f32], dx: &mut [f32]) {
    let width = y.len();
    let (dy, dx) = (&dy[..width], &mut dx[..width]);
    let mut sums = [simd.splat(0.); 4];
    let mut column = 0;
    while column + 4 * S::LANES <= width {
        for (index, sum) in sums.iter_mut().enumerate() {
            let column = column + index * S::LANES;
            // SAFETY: the vectors are within the rows, which are equally long.
            *sum = unsafe {
                simd.fma(simd.load(y.as_ptr().add(column)), simd.load(dy.as_ptr().add(column)), *sum)
            };
        }
        column += 4 * S::LANES;
    }
    while column < width {
        let count = S::LANES.min(width - column);
        sums[0] = simd.fma(load(simd, y, column, count), load(simd, dy, column, count), sums[0]);
        column += count;
    }
    let [a, b, c, d] = sums;
    let products = simd.splat(simd.reduce_add(simd.add(simd.add(a, b), simd.add(c, d))));
    for_vectors!(S, width, |column, count| {
        let slope = simd.sub(load(simd, dy, column, count), products);
        store(simd, dx, column, count, simd.mul(load(simd, y, column, count), slope));
    });
}
