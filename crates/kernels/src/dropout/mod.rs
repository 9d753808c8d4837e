//! Dropout whose choice of elements is a function of a seed and of their numbers: nothing is stored for the backward
//! pass, and every device and float type drops the same elements.
//!
//! Random bits: Philox-4x32 with 7 rounds, <https://doi.org/10.1145/2063384.2063405>; element i takes word i mod 4 of
//! counter i / 4.

mod cpu;
mod gpu;
#[cfg(test)]
mod reference;

use candle_core::{DType, Result, Tensor, bail};

use crate::{
    trace::{self, Work},
    {device::runs_kernels, graph::record1},
};

/// What is dropped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// The share of dropped elements, `0 ≤ probability < 1`; the others are multiplied by `1 / (1 − probability)`.
    pub probability: f32,
    /// Two seeds drop unrelated elements.
    pub seed: u64,
    /// The number of the tensor's first element: parts of a tensor can be dropped one by one.
    pub first: u64,
}

/// Zeros and scaled elements of `x`. The same call on the result's gradient is the backward pass; it is recorded in
/// candle's graph.
pub fn dropout(x: &Tensor, dropout: &Dropout) -> Result<Tensor> {
    let _op = trace::op("dropout", x.device(), || Work::elementwise(x, 2, 1));
    if !(0. ..1.).contains(&dropout.probability) {
        bail!("dropout: the probability is {}, expected 0 ≤ probability < 1", dropout.probability);
    }
    if !matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16) {
        bail!("dropout: for f32, f16 and bf16, not {:?}", x.dtype());
    }
    if dropout.probability == 0. || x.elem_count() == 0 {
        return Ok(x.clone());
    }
    let dense = x.contiguous()?;
    let y =
        if runs_kernels(x.device()) { gpu::dropout(&dense, dropout) } else { cpu::dropout(&dense, dropout) }?;
    let again = *dropout;
    record1("dropout", y, x, move |_, _, dy| Ok([Some(self::dropout(dy, &again)?)]))
}

impl Dropout {
    /// Elements whose random word is below are dropped.
    fn threshold(&self) -> u32 {
        (f64::from(self.probability) * 2f64.powi(32)) as u32
    }

    /// What the others are multiplied by.
    fn factor(&self) -> f32 {
        (1. / (1. - f64::from(self.probability))) as f32
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod suite;
