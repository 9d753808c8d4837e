//! RMS normalisation over the last dimension, with the residual additions that surround it.

mod reference;

use candle_core::{Result, Tensor};

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
    reference::rms_norm(x, norm)
}

/// `sum = residual + scale · delta`, and the norm of that sum: returns `(sum, normed)`.
pub fn add_rms_norm(
    residual: &Tensor,
    delta: &Tensor,
    scale: f32,
    norm: &RmsNorm,
) -> Result<(Tensor, Tensor)> {
    reference::add_rms_norm(residual, delta, scale, norm)
}

/// `residual + scale · rms_norm(delta)`: the residual addition of a post-norm block.
pub fn rms_norm_add(residual: &Tensor, delta: &Tensor, scale: f32, norm: &RmsNorm) -> Result<Tensor> {
    reference::rms_norm_add(residual, delta, scale, norm)
}
