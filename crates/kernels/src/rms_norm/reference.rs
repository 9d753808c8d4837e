//! The same arithmetic in plain candle ops.

use candle_core::{D, DType, Result, Tensor};

use super::RmsNorm;

pub(super) fn rms_norm(x: &Tensor, norm: &RmsNorm) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let mean_square = wide.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = wide.broadcast_div(&(mean_square + f64::from(norm.epsilon))?.sqrt()?)?;
    let weight = (norm.weight.to_dtype(DType::F32)? + f64::from(norm.weight_offset))?;
    normed.broadcast_mul(&weight)?.to_dtype(x.dtype())
}

pub(super) fn add_rms_norm(
    residual: &Tensor,
    delta: &Tensor,
    scale: f32,
    norm: &RmsNorm,
) -> Result<(Tensor, Tensor)> {
    let sum = (residual + (delta * f64::from(scale))?)?;
    let normed = rms_norm(&sum, norm)?;
    Ok((sum, normed))
}

pub(super) fn rms_norm_add(residual: &Tensor, delta: &Tensor, scale: f32, norm: &RmsNorm) -> Result<Tensor> {
    residual + (rms_norm(delta, norm)? * f64::from(scale))?
}
