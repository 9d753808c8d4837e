//! The CPU implementation.

use std::ops::Range;

use candle_core::{CpuStorage, Device, InplaceOp2, Layout, Result, Tensor, bail};

use super::{Clip, Coefficients};
use crate::{
    output::Output,
    pool,
    simd::{Simd, dispatch, for_vectors, load, store},
    view::View,
};

/// Elements per task: the four streams of a task together are within the second-level cache.
const TASK: usize = 16 * 1024;

pub(super) fn update(
    state: &Tensor,
    gradient: &Tensor,
    range: Range<usize>,
    coefficients: &Coefficients,
    clip: Option<Clip<'_>>,
) -> Result<()> {
    let factor = match clip {
        Some(clip) => shortening(View::new(clip.norm).f32s("update: `norm`")?[0], clip.longest),
        None => 1.,
    };
    state.inplace_op2(gradient, &Update { range, coefficients: *coefficients, factor })
}

pub(super) fn norm(x: &Tensor) -> Result<Tensor> {
    let x = View::new(x);
    let x = x.f32s("norm: `x`")?;
    let mut sums = vec![0.; x.len().div_ceil(TASK)];
    let output = Output::new(sums.as_mut_ptr());
    pool::for_each(sums.len(), &|task| {
        let sum = square_sum(&x[task * TASK..x.len().min((task + 1) * TASK)]);
        // SAFETY: each task has an element of its own.
        unsafe { *output.at(task) = f64::from(sum) };
    });
    let sum: f64 = sums.into_iter().sum();
    Tensor::from_vec(vec![sum.sqrt() as f32], 1, &Device::Cpu)
}

/// What a gradient of this norm is multiplied with.
fn shortening(norm: f32, longest: f32) -> f32 {
    (longest / (norm + 1e-6)).min(1.)
}

struct Update {
    range: Range<usize>,
    coefficients: Coefficients,
    /// Multiplies the gradient.
    factor: f32,
}

impl InplaceOp2 for Update {
    fn name(&self) -> &'static str {
        "optimizer-update"
    }

    fn cpu_fwd(
        &self,
        state: &mut CpuStorage,
        to: &Layout,
        gradient: &CpuStorage,
        from: &Layout,
    ) -> Result<()> {
        let (CpuStorage::F32(state), CpuStorage::F32(gradient)) = (state, gradient) else {
            bail!("update: `state` and `gradient` must be f32");
        };
        let count = gradient_length(from);
        let state = &mut state[to.start_offset()..to.start_offset() + 3 * count];
        let gradient = &gradient[from.start_offset()..from.start_offset() + count];
        let (value, moments) = state.split_at_mut(count);
        let (first, second) = moments.split_at_mut(count);
        let rows = [value, first, second].map(|row| Output::new(row.as_mut_ptr()));
        pool::for_each(self.range.len().div_ceil(TASK), &|task| {
            let start = self.range.start + task * TASK;
            let part = start..self.range.end.min(start + TASK);
            // SAFETY: the parts lie within the rows and do not overlap.
            let rows = rows.map(|row| unsafe { std::slice::from_raw_parts_mut(row.at(start), part.len()) });
            update_part(&self.coefficients, self.factor, rows, &gradient[part]);
        });
        Ok(())
    }
}

fn gradient_length(layout: &Layout) -> usize {
    layout.shape().elem_count()
}

dispatch! {
    fn update_part(
        coefficients: &Coefficients,
        factor: f32,
        rows: [&mut [f32]; 3],
        gradient: &[f32]
    ) = update_part_with;
    fn square_sum(x: &[f32]) -> f32 = square_sum_with;
}

#[inline(always)]
fn update_part_with<S: Simd>(
    simd: S,
    coefficients: &Coefficients,
    factor: f32,
    [value, first, second]: [&mut [f32]; 3],
    gradient: &[f32],
) {
    let Coefficients { rule, betas, epsilon, rate, keep, coupled_decay, root_factor } = *coefficients;
    let [a, b] = betas.map(|beta| simd.splat(beta));
    let [new_a, new_b] = betas.map(|beta| simd.splat(1. - beta));
    let [factor, epsilon, rate, keep] = [factor, epsilon, -rate, keep].map(|value| simd.splat(value));
    let [coupled_decay, root_factor] = [coupled_decay, root_factor].map(|value| simd.splat(value));
    for_vectors!(S, value.len(), |column, count| {
        let old = load(simd, value, column, count);
        let gradient = simd.mul(load(simd, gradient, column, count), factor);
        let gradient = simd.fma(old, coupled_decay, gradient);
        let mean = load(simd, first, column, count);
        let direction = match rule {
            0 => {
                let mean = simd.fma(mean, a, simd.mul(gradient, new_a));
                let variance = load(simd, second, column, count);
                let variance = simd.fma(variance, b, simd.mul(simd.mul(gradient, gradient), new_b));
                store(simd, first, column, count, mean);
                store(simd, second, column, count, variance);
                simd.div(mean, simd.fma(simd.sqrt(variance), root_factor, epsilon))
            }
            1 => {
                let mean = simd.fma(mean, a, gradient);
                store(simd, first, column, count, mean);
                mean
            }
            _ => {
                let blend = simd.fma(mean, a, simd.mul(gradient, new_a));
                store(simd, first, column, count, simd.fma(mean, b, simd.mul(gradient, new_b)));
                sign(simd, blend)
            }
        };
        store(simd, value, column, count, simd.fma(direction, rate, simd.mul(old, keep)));
    });
}

/// −1, 0 or 1.
#[inline(always)]
fn sign<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
    let zero = simd.splat(0.);
    let negative = simd.select_less(x, zero, simd.splat(-1.), zero);
    simd.select_less(zero, x, simd.splat(1.), negative)
}

#[inline(always)]
fn square_sum_with<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let mut sum = simd.splat(0.);
    for_vectors!(S, x.len(), |column, count| {
        let value = load(simd, x, column, count);
        sum = simd.fma(value, value, sum);
    });
    simd.reduce_add(sum)
}
