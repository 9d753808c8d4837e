//! The definition in plain candle ops, in f64: what all devices are compared with, gradients included.

use candle_core::{D, Result, Tensor};

use super::RmsNorm;

pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, norm: &RmsNorm) -> Result<Tensor> {
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = x.broadcast_div(&(mean_square + f64::from(norm.epsilon))?.sqrt()?)?;
    normed.broadcast_mul(&(weight + f64::from(norm.weight_offset))?)
}

pub(super) fn add_rms_norm(
    residual: &Tensor,
    delta: &Tensor,
    scale: f32,
    weight: &Tensor,
    norm: &RmsNorm,
) -> Result<[Tensor; 2]> {
    let sum = (residual + (delta * f64::from(scale))?)?;
    let normed = rms_norm(&sum, weight, norm)?;
    Ok([sum, normed])
}

pub(super) fn rms_norm_add(
    residual: &Tensor,
    delta: &Tensor,
    scale: f32,
    weight: &Tensor,
    norm: &RmsNorm,
) -> Result<Tensor> {
    residual + (rms_norm(delta, weight, norm)? * f64::from(scale))?
}
