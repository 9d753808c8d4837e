//! The GPU implementation: the device's own matrix product, and a kernel that adds biases.

use candle_core::{Result, Tensor};

use super::Projection;
use crate::{
    fresh::Fresh,
    gpu::{Argument, Kernel, Launch, Module, Variant, launch, module},
    matmul::{Right, matmul, matmul_add, matmul_bias},
};

static MODULE: Module = module!("linear");
static ADD_BIAS: Kernel = Kernel::new(&MODULE, "add_bias");

/// Threads of a group.
const THREADS: usize = 256;

/// `x [M, K]`
pub(super) fn linear(x: &Tensor, projection: &Projection) -> Result<Fresh> {
    let weight = projection.weight.detach().to_dtype(x.dtype())?.t()?;
    let Some(bias) = &projection.bias else { return matmul(x, &weight) };
    let bias = bias.detach().to_dtype(x.dtype())?.contiguous()?;
    match matmul_bias(x, &weight, &bias)? {
        Some(y) => Ok(y),
        None => add_bias(&matmul(x, &weight)?.into_tensor(), &bias),
    }
}

pub(super) fn input_gradient(dy: &Tensor, weight: &Tensor) -> Result<Fresh> {
    matmul(dy, &weight.detach().to_dtype(dy.dtype())?)
}

/// Says whether it could.
pub(super) fn add_input_gradient(dy: &Tensor, weight: &Tensor, dx: &Tensor) -> Result<bool> {
    matmul_add(dy, Right::AsIs(&weight.detach().to_dtype(dy.dtype())?), 1.0, dx)
}

pub(super) fn weight_gradient(x: &Tensor, dy: &Tensor) -> Result<Fresh> {
    matmul(&dy.t()?, x)
}

/// `product [M, N] + bias`
fn add_bias(product: &Tensor, bias: &Tensor) -> Result<Fresh> {
    let outputs = product.dim(1)?;
    let variant = Variant::for_rows(&[product, bias], outputs)?;
    let (accesses, all) = (outputs / variant.lanes(), product.elem_count() / variant.lanes());
    // SAFETY: the kernel writes every element.
    let y = unsafe { Fresh::uninitialized(product.shape(), product.dtype(), product.device())? };
    let added = Launch {
        kernel: &ADD_BIAS,
        variant,
        groups: [all.div_ceil(THREADS), 1, 1],
        threads: THREADS,
        arguments: &[
            Argument::Read(product),
            Argument::Read(bias),
            Argument::Write(&y),
            Argument::U32(u32::try_from(all)?),
            Argument::U32(u32::try_from(accesses)?),
        ],
    };
    // SAFETY: as `add_bias` in kernels.gpu asks; `bias` has as many elements as a row.
    unsafe { launch(product.device(), &added)? };
    Ok(y)
}
