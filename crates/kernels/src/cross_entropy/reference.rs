//! The definition in plain candle ops, in f64: what all devices are compared with, gradients included.

use candle_core::{D, Result, Tensor};

use super::{IGNORED, LossParams};

/// The loss of each token, `[T]`; 0 where the target is ignored.
pub(super) fn losses(
    hidden: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    targets: &[u32],
    params: &LossParams,
) -> Result<Tensor> {
    let mut logits = hidden.matmul(&weight.t()?)?; // [T, V]
    if let Some(bias) = bias {
        logits = logits.broadcast_add(bias)?;
    }
    logits = (logits * f64::from(params.logit_scale))?;
    if let Some(cap) = params.soft_cap.map(f64::from) {
        logits = ((logits / cap)?.tanh()? * cap)?;
    }
    let log_sum = logits.log_sum_exp(D::Minus1)?; // [T]
    let counts = |target: &u32| if *target == IGNORED { 0f64 } else { 1. };
    let mask = Tensor::from_iter(targets.iter().map(counts), hidden.device())?;
    let columns = targets.iter().map(|target| if *target == IGNORED { 0 } else { *target });
    let columns = Tensor::from_iter(columns, hidden.device())?.unsqueeze(1)?;
    let chosen = logits.gather(&columns, 1)?.squeeze(1)?;
    let smoothing = f64::from(params.label_smoothing);
    let expected = ((chosen * (1. - smoothing))? + (logits.mean(D::Minus1)? * smoothing)?)?;
    let losses = ((&log_sum - expected)? + (log_sum.sqr()? * f64::from(params.z_loss))?)?;
    losses * mask
}
