//! Dense layers over frozen weights: `y = x · wᵀ + b`.
//!
//! M: rows of `x`, K: inputs, N: outputs.

mod cpu;
mod few_rows;
mod many_rows;
pub(crate) mod microkernel;
mod reference;

use candle_core::{Result, Tensor};

pub use crate::gated::Activation;

/// A weight `[N, K]` with its optional bias `[N]`, each in its own float dtype.
#[derive(Debug, Clone)]
pub struct Projection {
    /// `[N, K]`, contiguous (a view of rows of a larger tensor is contiguous).
    pub weight: Tensor,
    /// `[N]`
    pub bias: Option<Tensor>,
}

/// `x [M, K] → [M, N]`.
pub fn linear(x: &Tensor, projection: &Projection) -> Result<Tensor> {
    let [y] = linear_many(x, [projection])?;
    Ok(y)
}

/// Several projections of the same input, in one parallel region.
pub fn linear_many<const COUNT: usize>(
    x: &Tensor,
    projections: [&Projection; COUNT],
) -> Result<[Tensor; COUNT]> {
    if x.device().is_cpu() {
        return cpu::products(x, projections.map(|projection| (projection, None)));
    }
    let mut outputs = Vec::with_capacity(COUNT);
    for projection in projections {
        outputs.push(reference::linear(x, projection)?);
    }
    Ok(outputs.try_into().expect("one output per projection"))
}

/// `activation(x · gateᵀ) ⊙ (x · upᵀ)`: the first half of a gated MLP.
pub fn gated_linear(
    x: &Tensor,
    gate: &Projection,
    up: &Projection,
    activation: Activation,
) -> Result<Tensor> {
    if x.device().is_cpu() {
        let [y] = cpu::products(x, [(up, Some((gate, activation)))])?;
        return Ok(y);
    }
    reference::gated_linear(x, gate, up, activation)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
