//! Changes of float type, with a factor on the way.

mod cpu;
mod gpu;

use candle_core::{DType, Result, Tensor, bail};

use crate::{
    trace::{self, Work},
    {device::runs_kernels, graph::record1},
};

/// `scale · x` as f32, f16 or bf16; computed in f32 and rounded once.
pub fn cast(x: &Tensor, dtype: DType, scale: f32) -> Result<Tensor> {
    let _op = trace::op("cast", x.device(), || {
        Work::elementwise(x, 1, 1).and((x.elem_count() * dtype.size_in_bytes()) as u64, 0)
    });
    check("cast", x.dtype())?;
    check("cast", dtype)?;
    if x.dtype() == dtype && scale == 1. {
        return Ok(x.clone());
    }
    let dense = x.contiguous()?;
    let y = if runs_kernels(x.device()) {
        gpu::cast(&dense, dtype, scale)
    } else {
        cpu::cast(&dense, dtype, scale)
    }?;
    record1("cast", y, x, move |[x], _, dy| Ok([Some(cast(dy, x.dtype(), scale)?)]))
}

/// Multiplies the elements of a contiguous tensor, in place.
pub fn scale_in_place(x: &Tensor, scale: f32) -> Result<()> {
    let _op = trace::op("scale_in_place", x.device(), || Work::elementwise(x, 2, 1));
    check("scale_in_place", x.dtype())?;
    if !x.is_contiguous() {
        bail!("scale_in_place: `x` must be contiguous; it is {:?}", x.layout());
    }
    if x.track_op() && !x.is_variable() {
        bail!(
            "scale_in_place: `x` is the result of a recorded op; a change in place would falsify its gradient"
        );
    }
    if x.elem_count() == 0 || scale == 1. {
        return Ok(());
    }
    if runs_kernels(x.device()) { gpu::scale_in_place(x, scale) } else { cpu::scale_in_place(x, scale) }
}

fn check(operation: &str, dtype: DType) -> Result<()> {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => Ok(()),
        other => bail!("{operation}: between f32, f16 and bf16, not {other:?}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod suite;
