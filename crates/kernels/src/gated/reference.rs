//! The definition in plain candle ops, in f64.

use candle_core::{Result, Tensor};

use super::Activation;

pub(super) fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    let activated = match activation {
        Activation::Silu => (gate / (gate.neg()?.exp()? + 1.)?)?,
        Activation::GeluTanh => {
            let u = ((gate + (gate.powf(3.)? * 0.044_715)?)? * (2. / std::f64::consts::PI).sqrt())?;
            (gate * ((u.tanh()? + 1.)? * 0.5)?)?
        }
        Activation::Gelu => (gate * (((gate * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.)? * 0.5)?)?,
    };
    activated * up
}
