//! RMS normalisation over the last dimension, with the residual additions that surround it.

mod cpu;
mod reference;

use candle_core::{D, Result, Tensor, bail};

/// A norm's weight `[D]` and constants.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    /// `[D]`, any float dtype.
    pub weight: Tensor,
    /// Added to the mean square.
    pub epsilon: f32,
    /// Added to the weight: 0, or 1 for gemma.
    pub weight_offset: f32,
}

/// `x / sqrt(mean(x²) + ε) · (w + offset)` over the last dimension; statistics in f32. `x` of any rank.
pub fn rms_norm(x: &Tensor, norm: &RmsNorm) -> Result<Tensor> {
    check_weight("rms_norm", "x", x, norm)?;
    if x.device().is_cpu() { cpu::rms_norm(x, norm) } else { reference::rms_norm(x, norm) }
}

/// `sum = residual + scale · delta`, and the norm of that sum: returns `(sum, normed)`.
pub fn add_rms_norm(
    residual: &Tensor,
    delta: &Tensor,
    scale: f32,
    norm: &RmsNorm,
) -> Result<(Tensor, Tensor)> {
    check_weight("add_rms_norm", "residual", residual, norm)?;
    check_same_shape("add_rms_norm", residual, delta)?;
    if residual.device().is_cpu() {
        cpu::add_rms_norm(residual, delta, scale, norm)
    } else {
        reference::add_rms_norm(residual, delta, scale, norm)
    }
}

/// `residual + scale · rms_norm(delta)`: the residual addition of a post-norm block.
pub fn rms_norm_add(residual: &Tensor, delta: &Tensor, scale: f32, norm: &RmsNorm) -> Result<Tensor> {
    check_weight("rms_norm_add", "residual", residual, norm)?;
    check_same_shape("rms_norm_add", residual, delta)?;
    if residual.device().is_cpu() {
        cpu::rms_norm_add(residual, delta, scale, norm)
    } else {
        reference::rms_norm_add(residual, delta, scale, norm)
    }
}

fn check_weight(operation: &str, name: &str, x: &Tensor, norm: &RmsNorm) -> Result<()> {
    let Ok(width) = x.dim(D::Minus1) else { bail!("{operation}: `{name}` is a scalar, expected [.., D]") };
    if norm.weight.dims() != [width] {
        let (found, shape) = (norm.weight.dims(), x.dims());
        bail!("{operation}: `weight` is {found:?}, expected [{width}] for `{name}` {shape:?}");
    }
    Ok(())
}

fn check_same_shape(operation: &str, residual: &Tensor, delta: &Tensor) -> Result<()> {
    if residual.dims() != delta.dims() {
        let (found, expected) = (delta.dims(), residual.dims());
        bail!("{operation}: `delta` is {found:?}, expected {expected:?} like `residual`");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
