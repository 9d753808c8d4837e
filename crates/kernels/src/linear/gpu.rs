//! The GPU implementation: the device's own matrix product; biases are added in place.

use candle_core::{Result, Tensor};

use super::Projection;
use crate::{
    fresh::Fresh,
    gpu::{Argument, Kernel, Launch, Module, Variant, launch, module},
    matmul::matmul,
};

static MODULE: Module = module!("linear");
static ADD_BIAS: Kernel = Kernel::new(&MODULE, "add_bias");

/// Threads of a group.
const THREADS: usize = 256;

/// `x [M, K]`
pub(super) fn linear(x: &Tensor, projection: &Projection) -> Result<Fresh> {
    let y = matmul(x, &projection.weight.detach().to_dtype(x.dtype())?.t()?)?;
    if let Some(bias) = &projection.bias {
        add_bias(x, &y, &bias.detach().to_dtype(x.dtype())?)?;
    }
    Ok(y)
}

pub(super) fn input_gradient(dy: &Tensor, weight: &Tensor) -> Result<Fresh> {
    matmul(dy, &weight.detach().to_dtype(dy.dtype())?)
}

pub(super) fn weight_gradient(x: &Tensor, dy: &Tensor) -> Result<Fresh> {
    matmul(&dy.t()?, x)
}

/// `y [M, N] += bias`; `x` tells dtype and device.
fn add_bias(x: &Tensor, y: &Fresh, bias: &Tensor) -> Result<()> {
    let (rows, outputs) = y.shape.dims2()?;
    // The result starts at the start of its memory: only the bias may be misaligned.
    let variant = Variant::for_rows(&[bias], outputs)?;
    let accesses = outputs / variant.lanes();
    let added = Launch {
        kernel: &ADD_BIAS,
        variant,
        groups: [(rows * accesses).div_ceil(THREADS), 1, 1],
        threads: THREADS,
        arguments: &[
            Argument::Read(bias),
            Argument::Write(y),
            Argument::U32(u32::try_from(rows)?),
            Argument::U32(u32::try_from(accesses)?),
        ],
    };
    // SAFETY: as `add_bias` in kernels.gpu asks; the product has written all of `y`, which is `[rows, outputs]`.
    unsafe { launch(x.device(), &added) }
}
