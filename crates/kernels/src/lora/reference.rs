//! The definition in plain candle ops, in f64.

use candle_core::{Result, Tensor};

/// `scale · (x · Aᵀ) · Bᵀ`
pub(super) fn delta(x: &Tensor, a: &Tensor, b: &Tensor, scale: f32) -> Result<Tensor> {
    x.broadcast_matmul(&a.t()?)?.broadcast_matmul(&b.t()?)? * f64::from(scale)
}

/// `magnitude / norm ⊙ (x · Wᵀ + delta) + bias`
pub(super) fn dora(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    delta: &Tensor,
    magnitude: &Tensor,
    norm: &Tensor,
) -> Result<Tensor> {
    let sum = (x.broadcast_matmul(&weight.t()?)? + delta)?;
    sum.broadcast_mul(&(magnitude / norm)?)?.broadcast_add(bias)
}

/// `‖W + scale · B · A‖` by rows.
pub(super) fn row_norms(weight: &Tensor, a: &Tensor, b: &Tensor, scale: f32) -> Result<Tensor> {
    let sum = (weight + (b.matmul(a)? * f64::from(scale))?)?;
    sum.sqr()?.sum(1)?.sqrt()
}
