//! DoRA: a layer whose weight is `m · (W + scale · B · A) / ‖W + scale · B · A‖` by rows, `m` being trained too.
//! The method: <https://arxiv.org/abs/2402.09353>. Its section 4.3 keeps the norm constant in the gradient, and
//! so do we.

use candle_core::{DType, Result, Tensor, bail};

use super::{LoraAdapter, LoraGradients, cpu, lora_backward, lora_delta};
use crate::{
    device::runs_kernels,
    linear::{Projection, linear, linear_backward, rows},
    trace::{self, Work, work},
};

/// Numbers of the combined weight that a GPU holds at once.
const BLOCK: usize = 16 << 20;

/// An adapter with magnitudes.
#[derive(Debug, Clone)]
pub struct Dora {
    /// A, B and their scale.
    pub adapter: LoraAdapter,
    /// `[N]`
    pub magnitude: Tensor,
}

/// Where [`dora_backward`] adds its gradients.
#[derive(Debug, Clone, Copy)]
pub struct DoraGradients<'a> {
    /// Of `x`, A and B. The gradient of `x` includes the frozen layer's.
    pub lora: LoraGradients<'a>,
    /// `[N]` in f32.
    pub magnitude: &'a Tensor,
}

/// `m / norm ⊙ (x · Wᵀ + scale · (x · Aᵀ) · Bᵀ) + bias`, with `norm` of [`dora_norm`]. Recorded in candle's graph.
pub fn dora(x: &Tensor, projection: &Projection, dora: &Dora, norm: &Tensor) -> Result<Tensor> {
    let _op = trace::op("dora", x.device(), || {
        Work::products(x, &[&projection.weight]).and_delta(x, &dora.adapter, work::rows(x) as usize)
    });
    let outputs = check("dora", projection, dora, norm)?;
    let frozen = Projection { weight: projection.weight.clone(), bias: None };
    let sum = (linear(x, &frozen)? + lora_delta(x, &dora.adapter)?)?;
    let scale = dora.magnitude.to_dtype(DType::F32)?.div(&norm.detach())?.to_dtype(sum.dtype())?;
    let y = sum.broadcast_mul(&scale)?;
    match &projection.bias {
        Some(bias) => y.broadcast_add(&bias.to_dtype(y.dtype())?.reshape(outputs)?),
        None => Ok(y),
    }
}

/// Adds the gradients of [`dora`]. `sum` is what was scaled, `x · Wᵀ + scale · (x · Aᵀ) · Bᵀ`; `projected` comes
/// from [`lora_down`](super::lora_down).
#[allow(clippy::too_many_arguments)]
pub fn dora_backward(
    x: &Tensor,
    dy: &Tensor,
    projection: &Projection,
    dora: &Dora,
    norm: &Tensor,
    sum: &Tensor,
    projected: &Tensor,
    into: &DoraGradients<'_>,
) -> Result<()> {
    let _op = trace::op("dora_backward", x.device(), || {
        Work::product(dy, &projection.weight).and_gradients(x, &dora.adapter, into.lora.dx)
    });
    let outputs = check("dora_backward", projection, dora, norm)?;
    if sum.dims() != dy.dims() || into.magnitude.dims() != [outputs] {
        let (sum, dy, magnitude) = (sum.dims(), dy.dims(), into.magnitude.dims());
        bail!("dora_backward: `sum` {sum:?}, `dy` {dy:?} and the magnitudes' {magnitude:?} do not fit");
    }
    let (flat_dy, flat_sum) = (rows(dy)?.to_dtype(DType::F32)?, rows(sum)?.to_dtype(DType::F32)?);
    let along = (&flat_dy * flat_sum)?.sum(0)?.div(norm)?;
    into.magnitude.slice_set(&(into.magnitude + along)?, 0, 0)?;
    let scale = dora.magnitude.detach().to_dtype(DType::F32)?.div(norm)?;
    let d_sum = flat_dy.broadcast_mul(&scale)?.to_dtype(dy.dtype())?.reshape(dy.shape())?;
    if let Some(dx) = into.lora.dx {
        let through_base = linear_backward(&d_sum, projection)?;
        dx.slice_set(&(dx + through_base)?, 0, 0)?;
    }
    lora_backward(x, &d_sum, &dora.adapter, projected, &into.lora)
}

/// `‖W + scale · B · A‖` by rows, `[N]` in f32, outside of any graph. The sum exists in blocks only.
pub fn dora_norm(weight: &Tensor, adapter: &LoraAdapter) -> Result<Tensor> {
    let _op = trace::op("dora_norm", weight.device(), || {
        Work::elementwise(weight, 1, 2 * adapter.rank() + 3).and_moving(&[&adapter.a, &adapter.b])
    });
    let (outputs, inputs) = weight.dims2()?;
    if adapter.a.dims() != [adapter.rank(), inputs] || adapter.b.dims() != [outputs, adapter.rank()] {
        let (a, b) = (adapter.a.dims(), adapter.b.dims());
        bail!(
            "dora_norm: A is {a:?} and B {b:?}, expected [r, {inputs}] and [{outputs}, r] for a weight [{outputs}, {inputs}]"
        );
    }
    if !runs_kernels(weight.device()) {
        return Ok(cpu::row_norms(weight, adapter)?.into_tensor());
    }
    let wide = |tensor: &Tensor| tensor.detach().to_dtype(DType::F32);
    let a = (wide(&adapter.a)? * f64::from(adapter.scale))?;
    let step = (BLOCK / inputs.max(1)).max(1);
    let mut norms = Vec::with_capacity(outputs.div_ceil(step));
    for start in (0..outputs).step_by(step) {
        let count = step.min(outputs - start);
        let b = wide(&adapter.b.narrow(0, start, count)?)?;
        trace::launched(5 + u64::from(weight.dtype() != DType::F32));
        let sum = (wide(&weight.narrow(0, start, count)?)? + b.matmul(&a)?)?;
        norms.push(sum.sqr()?.sum(1)?.sqrt()?);
    }
    Tensor::cat(&norms, 0)
}

/// N.
fn check(operation: &str, projection: &Projection, dora: &Dora, norm: &Tensor) -> Result<usize> {
    let outputs = projection.weight.dim(0)?;
    if dora.magnitude.dims() != [outputs] || norm.dims() != [outputs] || norm.dtype() != DType::F32 {
        let (magnitude, norm) = (dora.magnitude.dims(), (norm.dims(), norm.dtype()));
        bail!(
            "{operation}: `magnitude` is {magnitude:?} and `norm` {norm:?}, expected [{outputs}] and [{outputs}] in f32"
        );
    }
    Ok(outputs)
}
