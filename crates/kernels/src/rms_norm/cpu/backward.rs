//! The CPU implementation, backward.
//!
//! With `f` the row's factor and `g = dy · (w + offset)`: `dx = past + scale · f · (g − x · f² · mean(g · x))`,
//! and `dw = Σ dy · x · f` over the rows.

use std::ops::Range;

use candle_core::{Device, Result, Tensor};

use super::{super::RmsNorm, TASK};
use crate::{
    fresh::Fresh,
    output::{Output, filled, sum_of_parts},
    pool,
    simd::{Simd, dispatch, for_vectors, load, store},
    view::View,
};

/// Slices of one call, each as long as `x`, and the weight, widened and with its offset.
struct Job<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    past: Option<&'a [f32]>,
    gain: &'a [f32],
    scale: f32,
    epsilon: f32,
    output: Output<f32>,
}

pub(in super::super) fn backward(
    x: &Tensor,
    norm: &RmsNorm,
    dy: &Tensor,
    scale: f32,
    past: Option<&Tensor>,
) -> Result<Fresh> {
    let shape = x.shape();
    let past = past.map(View::new);
    let [x, dy, weight] = [x, dy, &norm.weight].map(View::new);
    let (x, dy) = (x.f32s("rms_norm_backward: `x`")?, dy.f32s("rms_norm_backward: `dy`")?);
    let past = past.as_ref().map(|past| past.f32s("rms_norm_backward: `past`")).transpose()?;
    let mut gain = weight.floats("rms_norm_backward: `weight`")?.to_f32s();
    gain.iter_mut().for_each(|gain| *gain += norm.weight_offset);
    let run = |output| {
        let job = Job { x, dy, past, gain: &gain, scale, epsilon: norm.epsilon, output };
        each_part(x.len() / gain.len().max(1), gain.len(), &|rows| backward_rows(&job, rows));
    };
    // SAFETY: `backward_rows` writes every row.
    let dx = unsafe { filled(x.len(), run) };
    Ok(Fresh::from_vec(dx, shape))
}

pub(in super::super) fn weight_backward(x: &Tensor, norm: &RmsNorm, dy: &Tensor) -> Result<Tensor> {
    let width = norm.weight.elem_count();
    let [x, dy] = [x, dy].map(View::new);
    let (x, dy) = (x.f32s("rms_norm_weight_backward: `x`")?, dy.f32s("rms_norm_weight_backward: `dy`")?);
    let rows = x.len() / width.max(1);
    let parts = rows.clamp(1, PARTS);
    let run = |output: Output<f32>| {
        pool::for_each(parts, &|part| {
            let range = part * rows / parts..(part + 1) * rows / parts;
            // SAFETY: each part has a row of the output of its own.
            let sum = unsafe { std::slice::from_raw_parts_mut(output.at(part * width), width) };
            sum.fill(0.);
            weight_rows(x, dy, norm.epsilon, range, sum);
        });
    };
    // SAFETY: every part is written.
    let sums = unsafe { filled(parts * width, run) };
    Tensor::from_vec(sum_of_parts(sums, width), width, &Device::Cpu)
}

/// Shares of the rows that are summed apart: a fixed number, so that the result does not depend on the threads.
const PARTS: usize = 16;

/// Splits rows over the pool; a few rows stay on this thread.
fn each_part(rows: usize, width: usize, run: &(dyn Fn(Range<usize>) + Sync)) {
    let rows_per_task = (TASK / width.max(1)).max(1);
    let tasks = rows.div_ceil(rows_per_task);
    if tasks <= 2 {
        return run(0..rows);
    }
    pool::for_each(tasks, &|task| {
        let first = task * rows_per_task;
        run(first..rows.min(first + rows_per_task));
    });
}

dispatch! {
    fn backward_rows(job: &Job<'_>, rows: Range<usize>) = backward_rows_with;
    fn weight_rows(x: &[f32], dy: &[f32], epsilon: f32, rows: Range<usize>, sum: &mut [f32]) = weight_rows_with;
}

#[inline(always)]
fn backward_rows_with<S: Simd>(simd: S, job: &Job<'_>, rows: Range<usize>) {
    let width = job.gain.len();
    for row in rows {
        let range = row * width..(row + 1) * width;
        let (x, dy) = (&job.x[range.clone()], &job.dy[range.clone()]);
        let (mut squares, mut products) = (simd.splat(0.), simd.splat(0.));
        for_vectors!(S, width, |column, count| {
            let x = load(simd, x, column, count);
            let g = simd.mul(load(simd, dy, column, count), load(simd, job.gain, column, count));
            squares = simd.fma(x, x, squares);
            products = simd.fma(g, x, products);
        });
        let (squares, products) = (simd.reduce_add(squares), simd.reduce_add(products));
        let factor = 1. / (squares / width as f32 + job.epsilon).sqrt();
        let pull = simd.splat(-factor * factor * products / width as f32);
        let factor = simd.splat(job.scale * factor);
        let past = job.past.map(|past| &past[range.clone()]);
        // SAFETY: the output is as long as `x`, and no two rows overlap.
        let dx = unsafe { std::slice::from_raw_parts_mut(job.output.at(range.start), width) };
        for_vectors!(S, width, |column, count| {
            let x = load(simd, x, column, count);
            let g = simd.mul(load(simd, dy, column, count), load(simd, job.gain, column, count));
            let mut value = simd.mul(factor, simd.fma(x, pull, g));
            if let Some(past) = past {
                value = simd.add(value, load(simd, past, column, count));
            }
            store(simd, dx, column, count, value);
        });
    }
}

#[inline(always)]
fn weight_rows_with<S: Simd>(
    simd: S,
    x: &[f32],
    dy: &[f32],
    epsilon: f32,
    rows: Range<usize>,
    sum: &mut [f32],
) {
    let width = sum.len();
    for row in rows {
        let (x, dy) = (&x[row * width..(row + 1) * width], &dy[row * width..(row + 1) * width]);
        let mut squares = simd.splat(0.);
        for_vectors!(S, width, |column, count| {
            let x = load(simd, x, column, count);
            squares = simd.fma(x, x, squares);
        });
        let factor = simd.splat(1. / (simd.reduce_add(squares) / width as f32 + epsilon).sqrt());
        for_vectors!(S, width, |column, count| {
            let x = simd.mul(load(simd, x, column, count), factor);
            let total = simd.fma(x, load(simd, dy, column, count), load(simd, sum, column, count));
            store(simd, sum, column, count, total);
        });
    }
}
