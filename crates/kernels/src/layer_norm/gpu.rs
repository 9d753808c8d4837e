//! The GPU implementation: a row stays in registers between its passes.

use candle_core::{DType, Result, Tensor};

use super::LayerNorm;
use crate::{
    fresh::Fresh,
    gpu::{Argument, Kernel, Launch, Module, Rows, launch, module},
};

static MODULE: Module = module!("layer_norm");
static LAYER_NORM: Kernel = Kernel::new(&MODULE, "layer_norm");
static BACKWARD: Kernel = Kernel::new(&MODULE, "layer_norm_backward");
static STATISTICS: Kernel = Kernel::new(&MODULE, "layer_norm_statistics");
static WEIGHT_BACKWARD: Kernel = Kernel::new(&MODULE, "layer_norm_weight_backward");

pub(super) fn layer_norm(x: &Tensor, norm: &LayerNorm) -> Result<Fresh> {
    let weight = norm.weight.to_dtype(x.dtype())?;
    let bias = norm.bias.as_ref().map(|bias| bias.to_dtype(x.dtype())).transpose()?;
    // Without a bias, the kernel does not look there.
    let bias_or_weight = bias.as_ref().unwrap_or(&weight);
    let rows = Rows::of(&[x, &weight, bias_or_weight])?;
    // SAFETY: the kernel writes every row.
    let y = unsafe { Fresh::uninitialized(x.shape(), x.dtype(), x.device())? };
    let arguments = [
        Argument::Read(x),
        Argument::Read(&weight),
        Argument::Read(bias_or_weight),
        Argument::Write(&y),
        Argument::U32(rows.count),
        Argument::U32(rows.width),
        Argument::U32(rows.row_threads),
        Argument::F32(norm.epsilon),
        Argument::U32(bias.is_some().into()),
    ];
    // SAFETY: as `layer_norm` in kernels.gpu asks; shapes were checked by the caller.
    unsafe { launch(x.device(), &rows.launch(&LAYER_NORM, &arguments))? };
    Ok(y)
}

pub(super) fn backward(x: &Tensor, norm: &LayerNorm, dy: &Tensor) -> Result<Fresh> {
    let weight = norm.weight.to_dtype(x.dtype())?;
    let rows = Rows::of(&[x, &weight, dy])?;
    // SAFETY: the kernel writes every row.
    let dx = unsafe { Fresh::uninitialized(x.shape(), x.dtype(), x.device())? };
    let arguments = [
        Argument::Read(x),
        Argument::Read(&weight),
        Argument::Read(dy),
        Argument::Write(&dx),
        Argument::U32(rows.count),
        Argument::U32(rows.width),
        Argument::U32(rows.row_threads),
        Argument::F32(norm.epsilon),
    ];
    // SAFETY: as `layer_norm_backward` in kernels.gpu asks; shapes were checked by the caller.
    unsafe { launch(x.device(), &rows.launch(&BACKWARD, &arguments))? };
    Ok(dx)
}

/// Rows whose products one thread adds up: few enough that the parts fill the GPU.
const PART_ROWS: usize = 64;

/// Sums over the rows, each `[D]` in f32.
pub(super) fn weight_backward(x: &Tensor, norm: &LayerNorm, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let rows = Rows::of(&[x, dy])?;
    let (count, width, device) = (rows.count as usize, rows.width as usize, x.device());
    let statistics = statistics(x, &rows, norm.epsilon)?;
    let parts = count.div_ceil(PART_ROWS).max(1);
    let sums = || {
        // SAFETY: the kernel writes every column of every part.
        unsafe { Fresh::uninitialized((parts, width), DType::F32, device) }
    };
    let (weight_sums, bias_sums) = (sums()?, sums()?);
    let (threads, lanes) = (128, rows.variant.lanes());
    let launch_of_parts = Launch {
        kernel: &WEIGHT_BACKWARD,
        variant: rows.variant,
        groups: [(width / lanes).div_ceil(threads), parts, 1],
        threads,
        arguments: &[
            Argument::Read(x),
            Argument::Read(dy),
            Argument::Read(&statistics),
            Argument::Write(&weight_sums),
            Argument::Write(&bias_sums),
            Argument::U32(rows.count),
            Argument::U32(rows.width),
            Argument::U32(PART_ROWS as u32),
        ],
    };
    // SAFETY: as `layer_norm_weight_backward` in kernels.gpu asks.
    unsafe { launch(device, &launch_of_parts)? };
    crate::trace::launched(2);
    Ok((weight_sums.into_tensor().sum(0)?, bias_sums.into_tensor().sum(0)?))
}

/// `[rows, 2]`: mean and factor of each row.
fn statistics(x: &Tensor, rows: &Rows, epsilon: f32) -> Result<Tensor> {
    // SAFETY: the kernel writes both of every row.
    let statistics = unsafe { Fresh::uninitialized((rows.count as usize, 2), DType::F32, x.device())? };
    let arguments = [
        Argument::Read(x),
        Argument::Write(&statistics),
        Argument::U32(rows.count),
        Argument::U32(rows.width),
        Argument::U32(rows.row_threads),
        Argument::F32(epsilon),
    ];
    // SAFETY: as `layer_norm_statistics` in kernels.gpu asks.
    unsafe { launch(x.device(), &rows.launch(&STATISTICS, &arguments))? };
    Ok(statistics.into_tensor())
}
