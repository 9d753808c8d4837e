//! The CPU implementation.

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::Activation;
use crate::{
    fresh::Fresh,
    output::{Output, filled},
    pool,
    simd::{Simd, dispatch, for_vectors, load, math, store},
    view::View,
};

/// Elements per task: a few cache lines of work for each thread switch, and inside the second-level cache.
const TASK: usize = 16 * 1024;

pub(super) fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Fresh> {
    let shape = gate.shape();
    let [gate, up] = [gate, up].map(View::new);
    let (gate, up) = (gate.f32s("gated: `gate`")?, up.f32s("gated: `up`")?);
    let run = |output: Output<f32>| {
        each_part(gate.len(), &|part| {
            // SAFETY: no two parts overlap, and all lie within the output.
            let y = unsafe { std::slice::from_raw_parts_mut(output.at(part.start), part.len()) };
            forward_part(&gate[part.clone()], &up[part], activation, y);
        });
    };
    // SAFETY: the parts cover all elements.
    let y = unsafe { filled(gate.len(), run) };
    Ok(Fresh::from_vec(y, shape))
}

pub(super) fn backward(
    gate: &Tensor,
    up: &Tensor,
    dy: &Tensor,
    activation: Activation,
) -> Result<(Fresh, Fresh)> {
    let shape = gate.shape();
    let [gate, up, dy] = [gate, up, dy].map(View::new);
    let gate = gate.f32s("gated_backward: `gate`")?;
    let up = up.f32s("gated_backward: `up`")?;
    let dy = dy.f32s("gated_backward: `dy`")?;
    let mut d_up = Vec::new();
    let run = |gate_output: Output<f32>| {
        let run = |up_output: Output<f32>| {
            each_part(gate.len(), &|part| {
                // SAFETY: as in `gated`.
                let [d_gate, d_up] = [gate_output, up_output].map(|output| unsafe {
                    std::slice::from_raw_parts_mut(output.at(part.start), part.len())
                });
                let inputs = [&gate[part.clone()], &up[part.clone()], &dy[part]];
                backward_part(inputs, activation, d_gate, d_up);
            });
        };
        // SAFETY: the parts cover all elements.
        d_up = unsafe { filled(gate.len(), run) };
    };
    // SAFETY: as above.
    let d_gate = unsafe { filled(gate.len(), run) };
    Ok((Fresh::from_vec(d_gate, shape), Fresh::from_vec(d_up, shape)))
}

/// Splits elements over the pool.
fn each_part(count: usize, run: &(dyn Fn(Range<usize>) + Sync)) {
    if count <= TASK {
        return run(0..count);
    }
    pool::for_each(count.div_ceil(TASK), &|task| run(task * TASK..count.min((task + 1) * TASK)));
}

dispatch! {
    fn forward_part(gate: &[f32], up: &[f32], activation: Activation, y: &mut [f32]) = forward_part_with;
    fn backward_part(
        inputs: [&[f32]; 3],
        activation: Activation,
        d_gate: &mut [f32],
        d_up: &mut [f32]
    ) = backward_part_with;
}

#[inline(always)]
fn forward_part_with<S: Simd>(simd: S, gate: &[f32], up: &[f32], activation: Activation, y: &mut [f32]) {
    for_vectors!(S, y.len(), |column, count| {
        let (gate, up) = (load(simd, gate, column, count), load(simd, up, column, count));
        let activated = match activation {
            Activation::Silu => math::silu(simd, gate),
            Activation::GeluTanh => math::gelu_tanh(simd, gate),
            Activation::Gelu => math::gelu(simd, gate),
        };
        store(simd, y, column, count, simd.mul(activated, up));
    });
}

#[inline(always)]
fn backward_part_with<S: Simd>(
    simd: S,
    [gate, up, dy]: [&[f32]; 3],
    activation: Activation,
    d_gate: &mut [f32],
    d_up: &mut [f32],
) {
    for_vectors!(S, gate.len(), |column, count| {
        let (x, up, dy) =
            (load(simd, gate, column, count), load(simd, up, column, count), load(simd, dy, column, count));
        let (value, slope) = match activation {
            Activation::Silu => math::silu_with_slope(simd, x),
            Activation::GeluTanh => math::gelu_tanh_with_slope(simd, x),
            Activation::Gelu => math::gelu_with_slope(simd, x),
        };
        store(simd, d_gate, column, count, simd.mul(simd.mul(dy, up), slope));
        store(simd, d_up, column, count, simd.mul(dy, value));
    });
}
