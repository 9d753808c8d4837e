//! The CPU implementation, forward: one pass per row to sum the squares, one to scale, while the row is in cache.

mod backward;

use std::ops::Range;

use candle_core::{Result, Tensor};

pub(super) use backward::{backward, weight_backward};

use super::RmsNorm;
use crate::{
    fresh::Fresh,
    output::{Output, filled},
    pool,
    simd::{Element, Simd, dispatch},
    view::{Floats, View},
};

/// Elements per task: enough to outweigh handing it to another thread.
const TASK: usize = 16 * 1024;

/// One of the three ops on slices.
struct Job<'a> {
    /// Elements per row.
    width: usize,
    /// None for [`rms_norm`].
    residual: Option<&'a [f32]>,
    delta: &'a [f32],
    scale: f32,
    weight: Floats<'a>,
    epsilon: f32,
    weight_offset: f32,
    /// `residual + scale · delta`, of [`add_rms_norm`] only.
    sum: Option<Output<f32>>,
    output: Output<f32>,
}

pub(super) fn rms_norm(x: &Tensor, norm: &RmsNorm) -> Result<Fresh> {
    let [delta, weight] = [x, &norm.weight].map(View::new);
    let delta = delta.f32s("rms_norm: `x`")?;
    let weight = weight.floats("rms_norm: `weight`")?;
    let run = |output| each_row(&Job::new(norm, weight, None, delta, 1., None, output), norm_rows);
    // SAFETY: `norm_rows` writes every row.
    let output = unsafe { filled(delta.len(), run) };
    Ok(Fresh::from_vec(output, x.shape()))
}

pub(super) fn add_rms_norm(
    residual: &Tensor,
    delta: &Tensor,
    scale: f32,
    norm: &RmsNorm,
) -> Result<(Fresh, Fresh)> {
    let shape = residual.shape();
    let [residual, delta, weight] = [residual, delta, &norm.weight].map(View::new);
    let residual = Some(residual.f32s("add_rms_norm: `residual`")?);
    let delta = delta.f32s("add_rms_norm: `delta`")?;
    let weight = weight.floats("add_rms_norm: `weight`")?;
    let mut normed = Vec::new();
    let run = |sum| {
        let run = |output| {
            each_row(&Job::new(norm, weight, residual, delta, scale, Some(sum), output), add_norm_rows);
        };
        // SAFETY: `add_norm_rows` writes every row, of the sum too.
        normed = unsafe { filled(delta.len(), run) };
    };
    // SAFETY: as above.
    let sum = unsafe { filled(delta.len(), run) };
    Ok((Fresh::from_vec(sum, shape), Fresh::from_vec(normed, shape)))
}

pub(super) fn rms_norm_add(residual: &Tensor, delta: &Tensor, scale: f32, norm: &RmsNorm) -> Result<Fresh> {
    let shape = residual.shape();
    let [residual, delta, weight] = [residual, delta, &norm.weight].map(View::new);
    let residual = Some(residual.f32s("rms_norm_add: `residual`")?);
    let delta = delta.f32s("rms_norm_add: `delta`")?;
    let weight = weight.floats("rms_norm_add: `weight`")?;
    let run = |output| each_row(&Job::new(norm, weight, residual, delta, scale, None, output), norm_add_rows);
    // SAFETY: `norm_add_rows` writes every row.
    let output = unsafe { filled(delta.len(), run) };
    Ok(Fresh::from_vec(output, shape))
}

impl<'a> Job<'a> {
    fn new(
        norm: &RmsNorm,
        weight: Floats<'a>,
        residual: Option<&'a [f32]>,
        delta: &'a [f32],
        scale: f32,
        sum: Option<Output<f32>>,
        output: Output<f32>,
    ) -> Self {
        let width = norm.weight.elem_count();
        let (epsilon, weight_offset) = (norm.epsilon, norm.weight_offset);
        Self { width, residual, delta, scale, weight, epsilon, weight_offset, sum, output }
    }
}

/// Splits the rows over the pool; a few rows stay on this thread.
fn each_row(job: &Job<'_>, run: fn(&Job<'_>, Range<usize>)) {
    if job.delta.is_empty() {
        return;
    }
    let rows = job.delta.len() / job.width;
    let rows_per_task = (TASK / job.width).max(1);
    let tasks = rows.div_ceil(rows_per_task);
    if tasks <= 2 {
        return run(job, 0..rows);
    }
    pool::for_each(tasks, &|task| {
        let first = task * rows_per_task;
        run(job, first..rows.min(first + rows_per_task));
    });
}

dispatch! {
    fn norm_rows(job: &Job<'_>, rows: Range<usize>) = norm_rows_with;
    fn add_norm_rows(job: &Job<'_>, rows: Range<usize>) = add_norm_rows_with;
    fn norm_add_rows(job: &Job<'_>, rows: Range<usize>) = norm_add_rows_with;
}

#[inline(always)]
fn norm_rows_with<S: Simd>(simd: S, job: &Job<'_>, rows: Range<usize>) {
    for row in rows {
        let start = row * job.width;
        let x = job.delta[start..start + job.width].as_ptr();
        // SAFETY: the slice bounds above; the outputs are as long as `delta`, and no two rows overlap.
        unsafe {
            let factor = factor(job, square_sum(simd, x, job.width));
            scale_row(simd, job, x, factor, job.output.at(start));
        }
    }
}

#[inline(always)]
fn add_norm_rows_with<S: Simd>(simd: S, job: &Job<'_>, rows: Range<usize>) {
    let residual = job.residual.expect("`add_rms_norm` sets it");
    let sum = job.sum.expect("`add_rms_norm` sets it");
    for row in rows {
        let start = row * job.width;
        let range = start..start + job.width;
        // SAFETY: as in `norm_rows_with`.
        unsafe {
            let sum = sum.at(start);
            add_row(
                simd,
                residual[range.clone()].as_ptr(),
                job.delta[range].as_ptr(),
                job.scale,
                sum,
                job.width,
            );
            let factor = factor(job, square_sum(simd, sum, job.width));
            scale_row(simd, job, sum, factor, job.output.at(start));
        }
    }
}

#[inline(always)]
fn norm_add_rows_with<S: Simd>(simd: S, job: &Job<'_>, rows: Range<usize>) {
    let residual = job.residual.expect("`rms_norm_add` sets it");
    for row in rows {
        let start = row * job.width;
        let range = start..start + job.width;
        let x = job.delta[range.clone()].as_ptr();
        // SAFETY: as in `norm_rows_with`.
        unsafe {
            let output = job.output.at(start);
            let factor = factor(job, square_sum(simd, x, job.width));
            scale_row(simd, job, x, factor, output);
            add_row(simd, residual[range].as_ptr(), output, job.scale, output, job.width);
        }
    }
}

fn factor(job: &Job<'_>, square_sum: f32) -> f32 {
    1. / (square_sum / job.width as f32 + job.epsilon).sqrt()
}

/// `Σ x²`, in four chains so that additions need not wait for each other.
#[inline(always)]
unsafe fn square_sum<S: Simd>(simd: S, x: *const f32, width: usize) -> f32 {
    let mut sums = [simd.splat(0.); 4];
    let mut column = 0;
    // SAFETY: the caller's promise: `width` floats are readable.
    unsafe {
        while column + 4 * S::LANES <= width {
            for (chain, sum) in sums.iter_mut().enumerate() {
                let value = simd.load(x.add(column + chain * S::LANES));
                *sum = simd.fma(value, value, *sum);
            }
            column += 4 * S::LANES;
        }
        while column < width {
            let value = simd.load_first(x.add(column), S::LANES.min(width - column));
            sums[0] = simd.fma(value, value, sums[0]);
            column += S::LANES;
        }
    }
    simd.reduce_add(simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3])))
}

/// `output = x · factor · (weight + offset)`
#[inline(always)]
unsafe fn scale_row<S: Simd>(simd: S, job: &Job<'_>, x: *const f32, factor: f32, output: *mut f32) {
    // SAFETY: the caller's promise: `width` floats behind `x` and `output`; `weight` has that length too.
    unsafe {
        match job.weight {
            Floats::F32(weight) => scale_row_by(simd, job, x, factor, weight.as_ptr(), output),
            Floats::Bf16(weight) => scale_row_by(simd, job, x, factor, weight.as_ptr(), output),
            Floats::F16(weight) => scale_row_by(simd, job, x, factor, weight.as_ptr(), output),
        }
    }
}

#[inline(always)]
unsafe fn scale_row_by<S: Simd, W: Element>(
    simd: S,
    job: &Job<'_>,
    x: *const f32,
    factor: f32,
    weight: *const W,
    output: *mut f32,
) {
    let (factor, offset) = (simd.splat(factor), simd.splat(job.weight_offset));
    let whole = job.width - job.width % S::LANES;
    // SAFETY: as above.
    unsafe {
        for column in (0..whole).step_by(S::LANES) {
            let scaled = simd.mul(simd.load(x.add(column)), factor);
            let weight = simd.add(W::load(simd, weight.add(column)), offset);
            simd.store(output.add(column), simd.mul(scaled, weight));
        }
        let rest = job.width - whole;
        if rest > 0 {
            let scaled = simd.mul(simd.load_first(x.add(whole), rest), factor);
            let weight = simd.add(W::load_first(simd, weight.add(whole), rest), offset);
            simd.store_first(output.add(whole), simd.mul(scaled, weight), rest);
        }
    }
}

/// `output = residual + scale · delta`; `output` may be `delta`.
#[inline(always)]
unsafe fn add_row<S: Simd>(
    simd: S,
    residual: *const f32,
    delta: *const f32,
    scale: f32,
    output: *mut f32,
    width: usize,
) {
    let factor = simd.splat(scale);
    let whole = width - width % S::LANES;
    // SAFETY: the caller's promise: `width` floats behind each pointer.
    unsafe {
        for column in (0..whole).step_by(S::LANES) {
            let delta = simd.load(delta.add(column));
            simd.store(output.add(column), simd.fma(delta, factor, simd.load(residual.add(column))));
        }
        let rest = width - whole;
        if rest > 0 {
            let delta = simd.load_first(delta.add(whole), rest);
            let sum = simd.fma(delta, factor, simd.load_first(residual.add(whole), rest));
            simd.store_first(output.add(whole), sum, rest);
        }
    }
}
