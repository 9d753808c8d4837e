//! The same arithmetic in plain candle ops.

use candle_core::{Result, Tensor};

use super::{Activation, Projection};

pub(super) fn linear(x: &Tensor, projection: &Projection) -> Result<Tensor> {
    let y = x.matmul(&projection.weight.to_dtype(x.dtype())?.t()?)?;
    match &projection.bias {
        Some(bias) => y.broadcast_add(&bias.to_dtype(x.dtype())?),
        None => Ok(y),
    }
}

pub(super) fn gated_linear(
    x: &Tensor,
    gate: &Projection,
    up: &Projection,
    activation: Activation,
) -> Result<Tensor> {
    let gate = linear(x, gate)?;
    let gate = match activation {
        Activation::Silu => gate.silu()?,
        Activation::GeluTanh => gate.gelu()?,
        Activation::Gelu => gate.gelu_erf()?,
    };
    gate * linear(x, up)?
}
