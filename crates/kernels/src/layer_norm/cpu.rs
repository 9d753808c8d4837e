//! The CPU implementation: mean, variance and result are three passes over a row that stays in the first-level
//! cache, so the variance loses no digits to a large mean.
//!
//! Backward, with `f` the row's factor, `c = x − mean` and `g = dy · w`:
//! `dx = f · (g − mean(g) − c · f² · mean(g · c))`, `dw = Σ dy · c · f` and `db = Σ dy` over the rows.

use std::ops::Range;

use candle_core::{Device, Result, Tensor};

use super::LayerNorm;
use crate::{
    fresh::Fresh,
    output::{Output, filled, sum_of_parts},
    pool,
    simd::{Simd, dispatch, for_vectors, load, store},
    view::View,
};

/// Elements per task: enough to outweigh handing it to another thread.
const TASK: usize = 16 * 1024;

/// Slices of one call: the gradient is empty in the forward pass.
struct Job<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    epsilon: f32,
    output: Output<f32>,
}

pub(super) fn layer_norm(x: &Tensor, norm: &LayerNorm) -> Result<Fresh> {
    let (weight, bias) = parameters(norm)?;
    let shape = x.shape();
    let x = View::new(x);
    let x = x.f32s("layer_norm: `x`")?;
    let run = |output| {
        let job = Job { x, dy: &[], weight: &weight, bias: bias.as_deref(), epsilon: norm.epsilon, output };
        each_part(&job, &|rows| forward_rows(&job, rows));
    };
    // SAFETY: `forward_rows` writes every row.
    let y = unsafe { filled(x.len(), run) };
    Ok(Fresh::from_vec(y, shape))
}

pub(super) fn backward(x: &Tensor, norm: &LayerNorm, dy: &Tensor) -> Result<Fresh> {
    let (weight, _) = parameters(norm)?;
    let shape = x.shape();
    let [x, dy] = [x, dy].map(View::new);
    let (x, dy) = (x.f32s("layer_norm_backward: `x`")?, dy.f32s("layer_norm_backward: `dy`")?);
    let run = |output| {
        let job = Job { x, dy, weight: &weight, bias: None, epsilon: norm.epsilon, output };
        each_part(&job, &|rows| backward_rows(&job, rows));
    };
    // SAFETY: `backward_rows` writes every row.
    let dx = unsafe { filled(x.len(), run) };
    Ok(Fresh::from_vec(dx, shape))
}

pub(super) fn weight_backward(x: &Tensor, norm: &LayerNorm, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let width = norm.weight.elem_count();
    let [x, dy] = [x, dy].map(View::new);
    let x = x.f32s("layer_norm_weight_backward: `x`")?;
    let dy = dy.f32s("layer_norm_weight_backward: `dy`")?;
    let [dw, db] = summed(x.len() / width.max(1), width, &|rows, weight_sum, bias_sum| {
        weight_rows(x, dy, norm.epsilon, rows, weight_sum, bias_sum);
    });
    Ok((Tensor::from_vec(dw, width, &Device::Cpu)?, Tensor::from_vec(db, width, &Device::Cpu)?))
}

/// [`backward`] and [`weight_backward`] at once: a few rows after the other, while the cache holds them.
pub(super) fn backward_all(x: &Tensor, norm: &LayerNorm, dy: &Tensor) -> Result<(Fresh, Tensor, Tensor)> {
    let (weight, _) = parameters(norm)?;
    let (shape, width) = (x.shape(), weight.len());
    let [x, dy] = [x, dy].map(View::new);
    let (x, dy) = (x.f32s("layer_norm_backward_all: `x`")?, dy.f32s("layer_norm_backward_all: `dy`")?);
    let mut sums = [Vec::new(), Vec::new()];
    let run = |output| {
        let job = Job { x, dy, weight: &weight, bias: None, epsilon: norm.epsilon, output };
        sums = summed(x.len() / width.max(1), width, &|rows, weight_sum, bias_sum| {
            all_rows(&job, rows, weight_sum, bias_sum);
        });
    };
    // SAFETY: `all_rows` writes every row.
    let dx = unsafe { filled(x.len(), run) };
    let [dw, db] = sums;
    let (dw, db) = (Tensor::from_vec(dw, width, &Device::Cpu)?, Tensor::from_vec(db, width, &Device::Cpu)?);
    Ok((Fresh::from_vec(dx, shape), dw, db))
}

/// Shares of the rows that are summed apart: a fixed number, so that the result does not depend on the threads.
const PARTS: usize = 16;

/// Adds what a range of rows gives to the sums of weight and bias.
type AddToSums<'a> = dyn Fn(Range<usize>, &mut [f32], &mut [f32]) + Sync + 'a;

/// What `add` adds to the sums of weight and bias for ranges of rows.
fn summed(rows: usize, width: usize, add: &AddToSums<'_>) -> [Vec<f32>; 2] {
    let parts = rows.clamp(1, PARTS);
    let run = |output: Output<f32>| {
        pool::for_each(parts, &|part| {
            // SAFETY: each part has two rows of the output of its own.
            let sums = unsafe { std::slice::from_raw_parts_mut(output.at(part * 2 * width), 2 * width) };
            sums.fill(0.);
            let (weight_sum, bias_sum) = sums.split_at_mut(width);
            add(part * rows / parts..(part + 1) * rows / parts, weight_sum, bias_sum);
        });
    };
    // SAFETY: every part is written.
    let mut weight_sum = sum_of_parts(unsafe { filled(parts * 2 * width, run) }, 2 * width);
    let bias_sum = weight_sum.split_off(width);
    [weight_sum, bias_sum]
}

/// Weight and bias, widened.
fn parameters(norm: &LayerNorm) -> Result<(Vec<f32>, Option<Vec<f32>>)> {
    let wide = |name, parameter| -> Result<Vec<f32>> { Ok(View::new(parameter).floats(name)?.to_f32s()) };
    let weight = wide("layer_norm: `weight`", &norm.weight)?;
    let bias = norm.bias.as_ref().map(|bias| wide("layer_norm: `bias`", bias)).transpose()?;
    Ok((weight, bias))
}

/// Splits the rows over the pool.
fn each_part(job: &Job<'_>, run: &(dyn Fn(Range<usize>) + Sync)) {
    let width = job.weight.len().max(1);
    let rows = job.x.len() / width;
    let rows_per_task = (TASK / width).max(1);
    let tasks = rows.div_ceil(rows_per_task);
    if tasks <= 1 {
        return run(0..rows);
    }
    pool::for_each(tasks, &|task| run(task * rows_per_task..rows.min((task + 1) * rows_per_task)));
}

dispatch! {
    fn forward_rows(job: &Job<'_>, rows: Range<usize>) = forward_rows_with;
    fn backward_rows(job: &Job<'_>, rows: Range<usize>) = backward_rows_with;
    fn weight_rows(
        x: &[f32],
        dy: &[f32],
        epsilon: f32,
        rows: Range<usize>,
        weight_sum: &mut [f32],
        bias_sum: &mut [f32]
    ) = weight_rows_with;
    fn all_rows(
        job: &Job<'_>,
        rows: Range<usize>,
        weight_sum: &mut [f32],
        bias_sum: &mut [f32]
    ) = all_rows_with;
}

#[inline(always)]
fn forward_rows_with<S: Simd>(simd: S, job: &Job<'_>, rows: Range<usize>) {
    let width = job.weight.len();
    for row in rows {
        let range = row * width..(row + 1) * width;
        let x = &job.x[range.clone()];
        let mean = sum(simd, x) / width as f32;
        let factor = 1. / (centred_squares(simd, x, mean) / width as f32 + job.epsilon).sqrt();
        let (mean, factor) = (simd.splat(mean), simd.splat(factor));
        // SAFETY: the output is as long as `x`, and no two rows overlap.
        let y = unsafe { std::slice::from_raw_parts_mut(job.output.at(range.start), width) };
        if let Some(bias) = job.bias {
            for_vectors!(S, width, |column, count| {
                let normed = simd.mul(simd.sub(load(simd, x, column, count), mean), factor);
                let (gain, shift) = (load(simd, job.weight, column, count), load(simd, bias, column, count));
                store(simd, y, column, count, simd.fma(normed, gain, shift));
            });
        } else {
            for_vectors!(S, width, |column, count| {
                let normed = simd.mul(simd.sub(load(simd, x, column, count), mean), factor);
                store(simd, y, column, count, simd.mul(normed, load(simd, job.weight, column, count)));
            });
        }
    }
}

#[inline(always)]
fn backward_rows_with<S: Simd>(simd: S, job: &Job<'_>, rows: Range<usize>) {
    let width = job.weight.len();
    for row in rows {
        let range = row * width..(row + 1) * width;
        let (x, dy) = (&job.x[range.clone()], &job.dy[range.clone()]);
        let mean = sum(simd, x) / width as f32;
        let squares = centred_squares(simd, x, mean);
        let mean = simd.splat(mean);
        let (mut gradients, mut products) = (simd.splat(0.), simd.splat(0.));
        for_vectors!(S, width, |column, count| {
            // Lanes behind the row's end are zero in `g`, so that those of `centred` do not count.
            let g = simd.mul(load(simd, dy, column, count), load(simd, job.weight, column, count));
            let centred = simd.sub(load(simd, x, column, count), mean);
            simd.prefetch(dy.as_ptr().wrapping_add(width + column));
            gradients = simd.add(gradients, g);
            products = simd.fma(g, centred, products);
        });
        let (gradients, products) = (simd.reduce_add(gradients), simd.reduce_add(products));
        let factor = 1. / (squares / width as f32 + job.epsilon).sqrt();
        let pull = simd.splat(-factor * factor * products / width as f32);
        let (factor, mean_gradient) = (simd.splat(factor), simd.splat(gradients / width as f32));
        // SAFETY: the output is as long as `x`, and no two rows overlap.
        let dx = unsafe { std::slice::from_raw_parts_mut(job.output.at(range.start), width) };
        for_vectors!(S, width, |column, count| {
            let g = simd.mul(load(simd, dy, column, count), load(simd, job.weight, column, count));
            let centred = simd.sub(load(simd, x, column, count), mean);
            let slope = simd.fma(centred, pull, simd.sub(g, mean_gradient));
            store(simd, dx, column, count, simd.mul(slope, factor));
        });
    }
}

#[inline(always)]
fn all_rows_with<S: Simd>(
    simd: S,
    job: &Job<'_>,
    rows: Range<usize>,
    weight_sum: &mut [f32],
    bias_sum: &mut [f32],
) {
    for first in rows.clone().step_by(4) {
        let few = first..rows.end.min(first + 4);
        backward_rows_with(simd, job, few.clone());
        weight_rows_with(simd, job.x, job.dy, job.epsilon, few, weight_sum, bias_sum);
    }
}

#[inline(always)]
fn weight_rows_with<S: Simd>(
    simd: S,
    x: &[f32],
    dy: &[f32],
    epsilon: f32,
    rows: Range<usize>,
    weight_sum: &mut [f32],
    bias_sum: &mut [f32],
) {
    let quads = rows.start + rows.len() / 4 * 4;
    for row in (rows.start..quads).step_by(4) {
        add_rows::<S, 4>(simd, x, dy, epsilon, row, weight_sum, bias_sum);
    }
    for row in quads..rows.end {
        add_rows::<S, 1>(simd, x, dy, epsilon, row, weight_sum, bias_sum);
    }
}

/// Adds what some rows contribute: several at a time, so that the sums are not read and written for each.
#[inline(always)]
fn add_rows<S: Simd, const ROWS: usize>(
    simd: S,
    x: &[f32],
    dy: &[f32],
    epsilon: f32,
    first: usize,
    weight_sum: &mut [f32],
    bias_sum: &mut [f32],
) {
    let width = weight_sum.len();
    let [mut means, mut factors] = [[simd.splat(0.); ROWS]; 2];
    for row in 0..ROWS {
        let x = &x[(first + row) * width..][..width];
        let mean = sum(simd, x) / width as f32;
        let variance = centred_squares(simd, x, mean) / width as f32;
        means[row] = simd.splat(mean);
        factors[row] = simd.splat(1. / (variance + epsilon).sqrt());
    }
    for_vectors!(S, width, |column, count| {
        let mut weight_total = load(simd, weight_sum, column, count);
        let mut bias_total = load(simd, bias_sum, column, count);
        for row in 0..ROWS {
            let place = (first + row) * width + column;
            let normed = simd.mul(simd.sub(load(simd, x, place, count), means[row]), factors[row]);
            let dy = load(simd, dy, place, count);
            weight_total = simd.fma(normed, dy, weight_total);
            bias_total = simd.add(dy, bias_total);
        }
        store(simd, weight_sum, column, count, weight_total);
        store(simd, bias_sum, column, count, bias_total);
    });
}

/// `Σ x`, in four chains so that additions need not wait for each other.
#[inline(always)]
fn sum<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let mut sums = [simd.splat(0.); 4];
    let mut column = 0;
    while column + 4 * S::LANES <= x.len() {
        for (index, sum) in sums.iter_mut().enumerate() {
            *sum = simd.add(*sum, load(simd, x, column + index * S::LANES, S::LANES));
        }
        column += 4 * S::LANES;
    }
    while column < x.len() {
        let count = S::LANES.min(x.len() - column);
        sums[0] = simd.add(sums[0], load(simd, x, column, count));
        column += count;
    }
    let [a, b, c, d] = sums;
    simd.reduce_add(simd.add(simd.add(a, b), simd.add(c, d)))
}

/// `Σ (x − mean)²`. Asks for the row behind this one: memory would wait through all passes but the first.
#[inline(always)]
fn centred_squares<S: Simd>(simd: S, x: &[f32], mean: f32) -> f32 {
    let mut sums = [simd.splat(0.); 4];
    let means = simd.splat(mean);
    let mut column = 0;
    while column + 4 * S::LANES <= x.len() {
        for (index, sum) in sums.iter_mut().enumerate() {
            simd.prefetch(x.as_ptr().wrapping_add(x.len() + column + index * S::LANES));
            let centred = simd.sub(load(simd, x, column + index * S::LANES, S::LANES), means);
            *sum = simd.fma(centred, centred, *sum);
        }
        column += 4 * S::LANES;
    }
    while column + S::LANES <= x.len() {
        let centred = simd.sub(load(simd, x, column, S::LANES), means);
        sums[0] = simd.fma(centred, centred, sums[0]);
        column += S::LANES;
    }
    let [a, b, c, d] = sums;
    let rest: f32 = x[column..].iter().map(|value| (value - mean) * (value - mean)).sum();
    simd.reduce_add(simd.add(simd.add(a, b), simd.add(c, d))) + rest
}
