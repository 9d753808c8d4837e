//! The definition in plain candle ops, in f64.

use candle_core::{Result, Tensor};

use super::Activation;

/// `x [.., K]`, `weight [N, K]`, `bias [N]`
pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = x.broadcast_matmul(&weight.t()?)?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

pub(super) fn gated_linear(x: &Tensor, gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    let gate = linear(x, gate, None)?;
    let gate = match activation {
        Activation::Silu => gate.silu()?,
        Activation::GeluTanh => gate.gelu()?,
        Activation::Gelu => gate.gelu_erf()?,
    };
    gate * linear(x, up, None)?
}
