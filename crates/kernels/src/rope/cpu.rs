//! The CPU implementation: each row's cosines and sines stay in cache while all its heads turn.

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::{Pairs, Rotation};
use crate::{
    fresh::Fresh,
    output::{Output, filled},
    pool,
    scratch::with_scratch,
    simd::{Simd, dispatch, for_vectors, load, store},
    view::View,
};

/// Elements per task: enough to outweigh handing it to another thread.
const TASK: usize = 16 * 1024;

struct Job<'a> {
    heads: usize,
    head_dim: usize,
    /// Half of the rotated elements of a head.
    half: usize,
    pairs: Pairs,
    /// Multiplies the sines: −1 turns back.
    direction: f32,
    x: &'a [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    output: Output<f32>,
}

pub(super) fn rope(x: &Tensor, rotation: &Rotation, direction: f32) -> Result<Fresh> {
    let (rows, heads, head_dim) = x.dims3()?;
    let (_rows, half) = rotation.cos.dims2()?;
    let shape = x.shape();
    let [x, cos, sin] = [x, &rotation.cos, &rotation.sin].map(View::new);
    let x = x.f32s("rope: `x`")?;
    let (cos, sin) = (cos.f32s("rope: `cos`")?, sin.f32s("rope: `sin`")?);
    let rows_per_task = (TASK / (heads * head_dim).max(1)).max(1);
    let tasks = rows.div_ceil(rows_per_task);
    let run = |output| {
        let job = Job { heads, head_dim, half, pairs: rotation.pairs, direction, x, cos, sin, output };
        if tasks <= 2 {
            return turn_rows(&job, 0..rows);
        }
        pool::for_each(tasks, &|task| {
            let first = task * rows_per_task;
            turn_rows(&job, first..rows.min(first + rows_per_task));
        });
    };
    // SAFETY: `turn_rows` writes every element of every row.
    let output = unsafe { filled(x.len(), run) };
    Ok(Fresh::from_vec(output, shape))
}

fn turn_rows(job: &Job<'_>, rows: Range<usize>) {
    match job.pairs {
        Pairs::Halves => turn_halves(job, rows),
        // The cosines and sines of a row, each twice.
        Pairs::Neighbours => with_scratch(4 * job.half, |tables| turn_neighbours(job, rows, tables)),
    }
}

dispatch! {
    fn turn_halves(job: &Job<'_>, rows: Range<usize>) = turn_halves_with;
    fn turn_neighbours(job: &Job<'_>, rows: Range<usize>, tables: &mut [f32]) = turn_neighbours_with;
}

/// The heads of a row, in and out.
#[inline(always)]
fn heads<'a>(job: &'a Job<'_>, row: usize) -> impl Iterator<Item = (&'a [f32], &'a mut [f32])> {
    (row * job.heads..(row + 1) * job.heads).map(|head| {
        let start = head * job.head_dim;
        let x = &job.x[start..start + job.head_dim];
        // SAFETY: the output is as long as `x`, and no two heads overlap.
        (x, unsafe { std::slice::from_raw_parts_mut(job.output.at(start), job.head_dim) })
    })
}

#[inline(always)]
fn turn_halves_with<S: Simd>(simd: S, job: &Job<'_>, rows: Range<usize>) {
    let direction = simd.splat(job.direction);
    for row in rows {
        let turn = row * job.half..(row + 1) * job.half;
        let (cos, sin) = (&job.cos[turn.clone()], &job.sin[turn]);
        for (x, y) in heads(job, row) {
            let (rotated, rest) = x.split_at(2 * job.half);
            let (first, second) = rotated.split_at(job.half);
            let (y, y_rest) = y.split_at_mut(2 * job.half);
            let (y_first, y_second) = y.split_at_mut(job.half);
            for_vectors!(S, job.half, |column, count| {
                let cos = load(simd, cos, column, count);
                let sin = simd.mul(load(simd, sin, column, count), direction);
                let (a, b) = (load(simd, first, column, count), load(simd, second, column, count));
                store(simd, y_first, column, count, simd.sub(simd.mul(a, cos), simd.mul(b, sin)));
                store(simd, y_second, column, count, simd.fma(a, sin, simd.mul(b, cos)));
            });
            y_rest.copy_from_slice(rest);
        }
    }
}

/// With each cosine doubled, and each sine once negated: `y = x · cos + swapped(x) · sin`.
#[inline(always)]
fn turn_neighbours_with<S: Simd>(simd: S, job: &Job<'_>, rows: Range<usize>, tables: &mut [f32]) {
    let (cos, sin) = tables.split_at_mut(2 * job.half);
    for row in rows {
        let turn = row * job.half..(row + 1) * job.half;
        for (doubled, cosine) in cos.chunks_exact_mut(2).zip(&job.cos[turn.clone()]) {
            (doubled[0], doubled[1]) = (*cosine, *cosine);
        }
        for (doubled, sine) in sin.chunks_exact_mut(2).zip(&job.sin[turn]) {
            (doubled[0], doubled[1]) = (-sine * job.direction, sine * job.direction);
        }
        for (x, y) in heads(job, row) {
            let (rotated, rest) = x.split_at(2 * job.half);
            let (y, y_rest) = y.split_at_mut(2 * job.half);
            for_vectors!(S, 2 * job.half, |column, count| {
                let x = load(simd, rotated, column, count);
                let turned = simd.mul(simd.swap_neighbours(x), load(simd, sin, column, count));
                store(simd, y, column, count, simd.fma(x, load(simd, cos, column, count), turned));
            });
            y_rest.copy_from_slice(rest);
        }
    }
}
