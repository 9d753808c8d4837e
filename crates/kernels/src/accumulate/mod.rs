//! Sums of gradients, in place.

mod cpu;
mod gpu;

use candle_core::{DType, Result, Tensor, bail};

use crate::{
    device::{narrow_on_cpu, runs_kernels},
    trace::{self, Work},
};

/// `into += x`, both of one shape: `into` in f32 and `x` in f32, f16 or bf16, or both in the same type. `into` is changed
/// for everybody who holds it, and must not share its memory with `x`.
pub fn accumulate(into: &Tensor, x: &Tensor) -> Result<()> {
    let _op = trace::op("accumulate", into.device(), || Work::elementwise(into, 2, 1).and_moving(&[x]));
    let fits = into.dtype() == DType::F32 || into.dtype() == x.dtype();
    if !fits || into.dims() != x.dims() {
        let (sum, x) = ((into.dims(), into.dtype()), (x.dims(), x.dtype()));
        bail!(
            "accumulate: `into` is {sum:?} and `x` {x:?}, expected f32, or the type of `x`, and the same shape"
        );
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
    if runs_kernels(into.device()) {
        return gpu::accumulate(into, &x);
    }
    if narrow_on_cpu(into) {
        let sum = into.to_dtype(DType::F32)?;
        cpu::accumulate(&sum, &x)?;
        return into.slice_set(&sum.to_dtype(into.dtype())?, 0, 0);
    }
    cpu::accumulate(into, &x)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod suite;
