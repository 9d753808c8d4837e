//! The definition in plain candle ops, in f64.

use candle_core::{D, Result, Tensor};

pub(super) fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, epsilon: f32) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = centred.broadcast_div(&(variance + f64::from(epsilon))?.sqrt()?)?.broadcast_mul(weight)?;
    bias.map_or(Ok(normed.clone()), |bias| normed.broadcast_add(bias))
}
