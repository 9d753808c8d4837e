//! RMS normalisation over the last dimension, with the residual additions that surround it.

mod cpu;
mod gpu;
#[cfg(test)]
mod reference;

use candle_core::{D, DType, Result, Tensor, bail};

use crate::{
    device::{self, runs_kernels},
    graph::record2,
    trace::{self, Work},
};

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
    let _op = trace::op("rms_norm", x.device(), || Work::elementwise(x, 2, 4).and_moving(&[&norm.weight]));
    check_weight("rms_norm", "x", x, norm)?;
    if device::narrow_on_cpu(x) {
        return rms_norm(&x.to_dtype(DType::F32)?, norm)?.to_dtype(x.dtype());
    }
    let dense = x.contiguous()?;
    let y = if runs_kernels(x.device()) { gpu::rms_norm(&dense, norm) } else { cpu::rms_norm(&dense, norm) }?;
    let recorded = norm.clone();
    record2("rms_norm", y, [x, &norm.weight], move |[x, weight], _, dy| {
        let norm = RmsNorm { weight: weight.clone(), ..recorded };
        let dw = if recorded.weight.track_op() {
            Some(rms_norm_weight_backward(x, &norm, dy)?.to_dtype(weight.dtype())?)
        } else {
            None
        };
        Ok([Some(rms_norm_backward(x, &norm, dy, None)?), dw])
    })
}

/// `sum = residual + scale · delta`, and the norm of that sum: returns `(sum, normed)`.
pub fn add_rms_norm(
    residual: &Tensor,
    delta: &Tensor,
    scale: f32,
    norm: &RmsNorm,
) -> Result<(Tensor, Tensor)> {
    let _op = trace::op("add_rms_norm", delta.device(), || {
        Work::elementwise(delta, 4, 6).and_moving(&[&norm.weight])
    });
    check_weight("add_rms_norm", "residual", residual, norm)?;
    check_same_shape("add_rms_norm", residual, delta)?;
    if is_recorded(residual, delta, norm) || device::narrow_on_cpu(delta) {
        // Two results do not fit into one node of candle's graph.
        let sum = (residual + (delta * f64::from(scale))?)?;
        let normed = rms_norm(&sum, norm)?;
        return Ok((sum, normed));
    }
    let (residual, delta) = (residual.contiguous()?, delta.contiguous()?);
    let (sum, normed) = if runs_kernels(delta.device()) {
        gpu::add_rms_norm(&residual, &delta, scale, norm)
    } else {
        cpu::add_rms_norm(&residual, &delta, scale, norm)
    }?;
    Ok((sum.into_tensor(), normed.into_tensor()))
}

/// `residual + scale · rms_norm(delta)`: the residual addition of a post-norm block.
pub fn rms_norm_add(residual: &Tensor, delta: &Tensor, scale: f32, norm: &RmsNorm) -> Result<Tensor> {
    let _op = trace::op("rms_norm_add", delta.device(), || {
        Work::elementwise(delta, 3, 6).and_moving(&[&norm.weight])
    });
    check_weight("rms_norm_add", "residual", residual, norm)?;
    check_same_shape("rms_norm_add", residual, delta)?;
    if is_recorded(residual, delta, norm) || device::narrow_on_cpu(delta) {
        return residual + (rms_norm(delta, norm)? * f64::from(scale))?;
    }
    let (residual, delta) = (residual.contiguous()?, delta.contiguous()?);
    let sum = if runs_kernels(delta.device()) {
        gpu::rms_norm_add(&residual, &delta, scale, norm)
    } else {
        cpu::rms_norm_add(&residual, &delta, scale, norm)
    }?;
    Ok(sum.into_tensor())
}

/// What the gradient of a norm's input is to be combined with.
#[derive(Debug, Clone, Copy)]
pub struct ResidualGradient<'a> {
    /// The gradient that reaches the input past the norm, or `None`.
    pub past: Option<&'a Tensor>,
    /// Multiplies the norm's own part.
    pub scale: f32,
}

/// The gradient of [`rms_norm`]'s `x` from that of its result, plus what reaches `x` past the norm:
/// `past + scale · dnorm(x, dy)`.
///
/// For [`add_rms_norm`], `x` is the sum and `past` its own gradient; the residual then has this gradient and
/// delta `scale` times it. For [`rms_norm_add`], the residual's gradient is `dy` and delta's has that `scale`.
pub fn rms_norm_backward(
    x: &Tensor,
    norm: &RmsNorm,
    dy: &Tensor,
    residual: Option<ResidualGradient<'_>>,
) -> Result<Tensor> {
    let _op =
        trace::op("rms_norm_backward", x.device(), || Work::elementwise(x, 3, 8).and_moving(&[&norm.weight]));
    check_weight("rms_norm_backward", "x", x, norm)?;
    check_same_shape("rms_norm_backward", x, dy)?;
    let (past, scale) = residual.map_or((None, 1.), |residual| (residual.past, residual.scale));
    if let Some(past) = past {
        check_same_shape("rms_norm_backward", x, past)?;
    }
    let wide = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.contiguous();
    if device::narrow_on_cpu(x) {
        let past = past.map(wide).transpose()?;
        return cpu::backward(&wide(x)?, norm, &wide(dy)?, scale, past.as_ref())?
            .into_tensor()
            .to_dtype(x.dtype());
    }
    let (x, dy, past) = (x.contiguous()?, dy.contiguous()?, past.map(Tensor::contiguous).transpose()?);
    let dx = if runs_kernels(x.device()) {
        gpu::backward(&x, norm, &dy, scale, past.as_ref())
    } else {
        cpu::backward(&x, norm, &dy, scale, past.as_ref())
    }?;
    Ok(dx.into_tensor())
}

/// The gradient of the norm's weight, `[D]` in f32.
pub fn rms_norm_weight_backward(x: &Tensor, norm: &RmsNorm, dy: &Tensor) -> Result<Tensor> {
    let _op = trace::op("rms_norm_weight_backward", x.device(), || {
        Work::elementwise(x, 2, 5).and_moving(&[&norm.weight])
    });
    check_weight("rms_norm_weight_backward", "x", x, norm)?;
    check_same_shape("rms_norm_weight_backward", x, dy)?;
    if runs_kernels(x.device()) {
        return gpu::weight_backward(&x.contiguous()?, norm, &dy.contiguous()?);
    }
    let wide = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.contiguous();
    cpu::weight_backward(&wide(x)?, norm, &wide(dy)?)
}

fn is_recorded(residual: &Tensor, delta: &Tensor, norm: &RmsNorm) -> bool {
    [residual, delta, &norm.weight].into_iter().any(Tensor::track_op)
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
    if residual.dtype() != delta.dtype() {
        let (found, expected) = (delta.dtype(), residual.dtype());
        bail!("{operation}: `delta` is {found:?}, expected {expected:?} like `residual`");
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod suite;
#[cfg(test)]
mod tests;
