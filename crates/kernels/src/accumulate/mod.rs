//! Sums of gradients: what is added may be in half precision, the sum is always in f32.

mod cpu;
mod gpu;

use candle_core::{DType, Result, Tensor, bail};

use crate::device::runs_kernels;

/// `into += x` for `into` in f32 and `x` of its shape in f32, f16 or bf16. `into` is changed for everybody who holds it,
/// and must not share its memory with `x`.
pub fn accumulate(into: &Tensor, x: &Tensor) -> Result<()> {
    if into.dtype() != DType::F32 || into.dims() != x.dims() {
        let (sum, x) = ((into.dims(), into.dtype()), (x.dims(), x.dtype()));
        bail!("accumulate: `into` is {sum:?} and `x` {x:?}, expected f32 and the same shape");
    }
    if !matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16) {
        bail!("accumulate: `x` is {:?}, expected f32, f16 or bf16", x.dtype());
    }
    if into.track_op() || !into.is_contiguous() {
        bail!("accumulate: `into` is changed in place: it must be contiguous and outside of any graph");
    }
    if x.elem_count() == 0 {
        return Ok(());
    }
    let x = x.detach().contiguous()?;
    if runs_kernels(into.device()) { gpu::accumulate(into, &x) } else { cpu::accumulate(into, &x) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod suite;
