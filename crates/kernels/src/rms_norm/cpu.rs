//! The CPU implementation: one pass per row to sum the squares, one to scale, while the row is in cache.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor, bail};
use half::{bf16, f16};

use super::RmsNorm;
use crate::{
    host::{HostSlice, Output, filled},
    pool,
    simd::{Element, Simd, dispatch},
};

/// Elements per task: enough to outweigh handing it to another thread.
const TASK: usize = 16 * 1024;

/// One of the three ops on slices; the norm's weights are `W`.
struct Job<'a, W> {
    /// Elements per row.
    width: usize,
    residual: Option<&'a [f32]>,
    delta: &'a [f32],
    scale: f32,
    weight: &'a [W],
    epsilon: f32,
    weight_offset: f32,
    /// `residual + scale · delta`, of [`add_rms_norm`] only.
    sum: Option<Output<f32>>,
    output: Output<f32>,
}

/// Calls `$function::<W>(arguments)` with the Rust type of the weights.
macro_rules! with_weight_type {
    ($operation:literal, $norm:expr, $function:ident($($argument:expr),*)) => {
        match $norm.weight.dtype() {
            DType::F32 => $function::<f32>($($argument),*),
            DType::BF16 => $function::<bf16>($($argument),*),
            DType::F16 => $function::<f16>($($argument),*),
            other => bail!("{}: `weight` is {other:?}, expected F32, BF16 or F16", $operation),
        }
    };
}

pub(super) fn rms_norm(x: &Tensor, norm: &RmsNorm) -> Result<Tensor> {
    with_weight_type!("rms_norm", norm, rms_norm_with(x, norm))
}

pub(super) fn add_rms_norm(
    residual: &Tensor,
    delta: &Tensor,
    scale: f32,
    norm: &RmsNorm,
) -> Result<(Tensor, Tensor)> {
    with_weight_type!("add_rms_norm", norm, add_rms_norm_with(residual, delta, scale, norm))
}

pub(super) fn rms_norm_add(residual: &Tensor, delta: &Tensor, scale: f32, norm: &RmsNorm) -> Result<Tensor> {
    with_weight_type!("rms_norm_add", norm, rms_norm_add_with(residual, delta, scale, norm))
}

fn rms_norm_with<W: Element>(x: &Tensor, norm: &RmsNorm) -> Result<Tensor> {
    let delta = HostSlice::read(x, "rms_norm", "x")?;
    let weight = HostSlice::<W>::read(&norm.weight, "rms_norm", "weight")?;
    // SAFETY: `norm_rows` writes every row.
    let output = unsafe {
        filled(delta.len(), |output| {
            each_row(&job(None, &delta, 1., &weight, norm, None, output), norm_rows::<W>);
        })
    };
    Tensor::from_vec(output, x.shape(), &Device::Cpu)
}

fn add_rms_norm_with<W: Element>(
    residual: &Tensor,
    delta: &Tensor,
    scale: f32,
    norm: &RmsNorm,
) -> Result<(Tensor, Tensor)> {
    let shape = residual.shape();
    let residual = HostSlice::read(residual, "add_rms_norm", "residual")?;
    let delta = HostSlice::read(delta, "add_rms_norm", "delta")?;
    let weight = HostSlice::<W>::read(&norm.weight, "add_rms_norm", "weight")?;
    let mut normed = Vec::new();
    // SAFETY: `add_norm_rows` writes every row of both.
    let sum = unsafe {
        filled(delta.len(), |sum| {
            normed = filled(delta.len(), |output| {
                let job = job(Some(&residual), &delta, scale, &weight, norm, Some(sum), output);
                each_row(&job, add_norm_rows::<W>);
            });
        })
    };
    Ok((Tensor::from_vec(sum, shape, &Device::Cpu)?, Tensor::from_vec(normed, shape, &Device::Cpu)?))
}

fn rms_norm_add_with<W: Element>(
    residual: &Tensor,
    delta: &Tensor,
    scale: f32,
    norm: &RmsNorm,
) -> Result<Tensor> {
    let shape = residual.shape();
    let residual = HostSlice::read(residual, "rms_norm_add", "residual")?;
    let delta = HostSlice::read(delta, "rms_norm_add", "delta")?;
    let weight = HostSlice::<W>::read(&norm.weight, "rms_norm_add", "weight")?;
    // SAFETY: `norm_add_rows` writes every row.
    let output = unsafe {
        filled(delta.len(), |output| {
            let job = job(Some(&residual), &delta, scale, &weight, norm, None, output);
            each_row(&job, norm_add_rows::<W>);
        })
    };
    Tensor::from_vec(output, shape, &Device::Cpu)
}

fn job<'a, W>(
    residual: Option<&'a [f32]>,
    delta: &'a [f32],
    scale: f32,
    weight: &'a [W],
    norm: &RmsNorm,
    sum: Option<Output<f32>>,
    output: Output<f32>,
) -> Job<'a, W> {
    let (epsilon, weight_offset) = (norm.epsilon, norm.weight_offset);
    Job { width: weight.len(), residual, delta, scale, weight, epsilon, weight_offset, sum, output }
}

/// Splits the rows over the pool; a few rows stay on this thread.
fn each_row<W: Element>(job: &Job<'_, W>, run: impl Fn(&Job<'_, W>, Range<usize>) + Sync) {
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
    fn norm_rows<W: Element>(job: &Job<'_, W>, rows: Range<usize>) = norm_rows_with;
    fn add_norm_rows<W: Element>(job: &Job<'_, W>, rows: Range<usize>) = add_norm_rows_with;
    fn norm_add_rows<W: Element>(job: &Job<'_, W>, rows: Range<usize>) = norm_add_rows_with;
}

#[inline(always)]
fn norm_rows_with<S: Simd, W: Element>(simd: S, job: &Job<'_, W>, rows: Range<usize>) {
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
fn add_norm_rows_with<S: Simd, W: Element>(simd: S, job: &Job<'_, W>, rows: Range<usize>) {
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
fn norm_add_rows_with<S: Simd, W: Element>(simd: S, job: &Job<'_, W>, rows: Range<usize>) {
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

fn factor<W>(job: &Job<'_, W>, square_sum: f32) -> f32 {
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
unsafe fn scale_row<S: Simd, W: Element>(
    simd: S,
    job: &Job<'_, W>,
    x: *const f32,
    factor: f32,
    output: *mut f32,
) {
    let (factor, offset) = (simd.splat(factor), simd.splat(job.weight_offset));
    let whole = job.width - job.width % S::LANES;
    let weight = job.weight.as_ptr();
    // SAFETY: the caller's promise: `width` floats behind `x` and `output`; `weight` has that length too.
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
