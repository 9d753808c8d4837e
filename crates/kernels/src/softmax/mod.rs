//! Softmax over the last dimension, with the masks of attention.
//!
//! Shapes: C columns, Q queries.

mod cpu;
mod gpu;
mod mask;
#[cfg(test)]
mod reference;

use candle_core::{DType, Result, Tensor, bail};

use crate::{
    device::{narrow_on_cpu, runs_kernels},
    graph::record1,
    trace::{self, Work},
};
use mask::Seen;

/// Which columns a row sees. A hidden column has probability zero, and so has every column of a row that sees
/// none.
#[derive(Debug, Clone, Copy)]
pub enum Mask<'a> {
    /// All.
    None,
    /// In `[.., Q, C]`, query `q` sees the columns up to `q + offset`.
    Causal {
        /// Columns before the first query's own.
        offset: usize,
    },
    /// Those where this `u8` tensor is not zero. Its last dimension is C; the others are those of `x`, or 1, or
    /// absent at the front.
    Tensor(&'a Tensor),
}

/// `exp(x) / Σ exp(x)` over the seen columns of the last dimension, safe from overflow. `x` is `[.., C]`.
pub fn softmax(x: &Tensor, mask: Mask<'_>) -> Result<Tensor> {
    let _op = trace::op("softmax", x.device(), || Work::elementwise(x, 2, 4));
    let seen = Seen::of(x, mask)?;
    if narrow_on_cpu(x) {
        return softmax(&x.to_dtype(DType::F32)?, mask)?.to_dtype(x.dtype());
    }
    let dense = x.contiguous()?;
    let y = if runs_kernels(x.device()) { gpu::softmax(&dense, &seen) } else { cpu::softmax(&dense, &seen) }?;
    record1("softmax", y, x, |_, y, dy| Ok([Some(softmax_backward(y, dy)?)]))
}

/// The gradient of [`softmax`]'s `x` from its result and that result's gradient: `y · (dy − Σ y · dy)`.
pub fn softmax_backward(y: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let _op = trace::op("softmax_backward", y.device(), || Work::elementwise(y, 3, 4));
    if (y.dims(), y.dtype()) != (dy.dims(), dy.dtype()) {
        let (found, expected) = ((dy.dims(), dy.dtype()), (y.dims(), y.dtype()));
        bail!("softmax_backward: `dy` is {found:?}, expected {expected:?} like `y`");
    }
    if y.rank() == 0 {
        bail!("softmax_backward: `y` is a scalar, expected [.., C]");
    }
    if narrow_on_cpu(y) {
        let [y_wide, dy_wide] = [y.to_dtype(DType::F32)?, dy.to_dtype(DType::F32)?];
        return softmax_backward(&y_wide, &dy_wide)?.to_dtype(y.dtype());
    }
    let (y, dy) = (y.contiguous()?, dy.contiguous()?);
    let dx = if runs_kernels(y.device()) { gpu::backward(&y, &dy) } else { cpu::backward(&y, &dy) }?;
    Ok(dx.into_tensor())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod suite;
