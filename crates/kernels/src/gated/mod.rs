//! The gated activation of a feed-forward block: `activation(gate) ⊙ up` (SwiGLU, GeGLU).

mod cpu;
mod gpu;
#[cfg(test)]
mod reference;

use candle_core::{DType, Result, Tensor, bail};

use crate::{
    device::{narrow_on_cpu, runs_kernels},
    graph::record2,
};

/// The nonlinearity of a gated layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`
    Silu,
    /// GELU by its tanh approximation (`gelu_pytorch_tanh`).
    GeluTanh,
    /// GELU by the error function (`gelu`).
    Gelu,
}

/// `activation(gate) ⊙ up`, of one shape and type.
pub fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    check("gated", "up", gate, up)?;
    if narrow_on_cpu(gate) {
        let [gate_wide, up_wide] = [gate.to_dtype(DType::F32)?, up.to_dtype(DType::F32)?];
        return gated(&gate_wide, &up_wide, activation)?.to_dtype(gate.dtype());
    }
    let (dense_gate, dense_up) = (gate.contiguous()?, up.contiguous()?);
    let y = if runs_kernels(gate.device()) {
        gpu::gated(&dense_gate, &dense_up, activation)
    } else {
        cpu::gated(&dense_gate, &dense_up, activation)
    }?;
    record2("gated", y, [gate, up], move |[gate, up], _, dy| {
        let (d_gate, d_up) = gated_backward(gate, up, dy, activation)?;
        Ok([Some(d_gate), Some(d_up)])
    })
}

/// The gradients of [`gated`]'s `gate` and `up`.
pub fn gated_backward(
    gate: &Tensor,
    up: &Tensor,
    dy: &Tensor,
    activation: Activation,
) -> Result<(Tensor, Tensor)> {
    check("gated_backward", "up", gate, up)?;
    check("gated_backward", "dy", gate, dy)?;
    if narrow_on_cpu(gate) {
        let wide = |tensor: &Tensor| tensor.to_dtype(DType::F32);
        let (d_gate, d_up) = gated_backward(&wide(gate)?, &wide(up)?, &wide(dy)?, activation)?;
        return Ok((d_gate.to_dtype(gate.dtype())?, d_up.to_dtype(gate.dtype())?));
    }
    let (gate, up, dy) = (gate.contiguous()?, up.contiguous()?, dy.contiguous()?);
    let (d_gate, d_up) = if runs_kernels(gate.device()) {
        gpu::backward(&gate, &up, &dy, activation)
    } else {
        cpu::backward(&gate, &up, &dy, activation)
    }?;
    Ok((d_gate.into_tensor(), d_up.into_tensor()))
}

/// As [`gated_backward`]; a GPU puts the gradients into the memory of `gate` and `up`, which nobody else may hold.
pub fn gated_backward_in_place(
    gate: Tensor,
    up: Tensor,
    dy: &Tensor,
    activation: Activation,
) -> Result<(Tensor, Tensor)> {
    if !runs_kernels(gate.device()) || narrow_on_cpu(&gate) {
        return gated_backward(&gate, &up, dy, activation);
    }
    check("gated_backward_in_place", "up", &gate, &up)?;
    check("gated_backward_in_place", "dy", &gate, dy)?;
    for (name, tensor) in [("gate", &gate), ("up", &up)] {
        if tensor.track_op() || !tensor.is_contiguous() {
            bail!(
                "gated_backward_in_place: `{name}` is changed: it must be contiguous and outside of any graph"
            );
        }
    }
    gpu::backward_in_place(&gate, &up, &dy.contiguous()?, activation)?;
    Ok((gate, up))
}

fn check(operation: &str, name: &str, gate: &Tensor, other: &Tensor) -> Result<()> {
    if (gate.dims(), gate.dtype()) != (other.dims(), other.dtype()) {
        let (found, expected) = ((other.dims(), other.dtype()), (gate.dims(), gate.dtype()));
        bail!("{operation}: `{name}` is {found:?}, expected {expected:?} like `gate`");
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod suite;
