//! The GPU implementation: a row stays in registers between its two passes.

use candle_core::{DType, Result, Tensor};

use super::RmsNorm;
use crate::{
    fresh::Fresh,
    gpu::{Argument, Kernel, Launch, Module, Rows, launch, module},
};

static MODULE: Module = module!("rms_norm");
static RMS_NORM: Kernel = Kernel::new(&MODULE, "rms_norm");
static ADD_RMS_NORM: Kernel = Kernel::new(&MODULE, "add_rms_norm");
static RMS_NORM_ADD: Kernel = Kernel::new(&MODULE, "rms_norm_add");
static BACKWARD: Kernel = Kernel::new(&MODULE, "rms_norm_backward");
static FACTORS: Kernel = Kernel::new(&MODULE, "rms_norm_factors");
static WEIGHT_BACKWARD: Kernel = Kernel::new(&MODULE, "rms_norm_weight_backward");

pub(super) fn rms_norm(x: &Tensor, norm: &RmsNorm) -> Result<Fresh> {
    let weight = norm.weight.to_dtype(x.dtype())?;
    let rows = Rows::of(&[x, &weight])?;
    // SAFETY: the kernel writes every row.
    let y = unsafe { Fresh::uninitialized(x.shape(), x.dtype(), x.device())? };
    let arguments = [
        Argument::Read(x),
        Argument::Read(&weight),
        Argument::Write(&y),
        Argument::U32(rows.count),
        Argument::U32(rows.width),
        Argument::U32(rows.row_threads),
        Argument::F32(norm.epsilon),
        Argument::F32(norm.weight_offset),
    ];
    // SAFETY: as `rms_norm` in kernels.gpu asks; shapes were checked by the caller.
    unsafe { launch(x.device(), &rows.launch(&RMS_NORM, &arguments))? };
    Ok(y)
}

pub(super) fn add_rms_norm(
    residual: &Tensor,
    delta: &Tensor,
    scale: f32,
    norm: &RmsNorm,
) -> Result<(Fresh, Fresh)> {
    let weight = norm.weight.to_dtype(delta.dtype())?;
    let rows = Rows::of(&[residual, delta, &weight])?;
    // SAFETY: the kernel writes every row of both.
    let [sum, y] = unsafe {
        [
            Fresh::uninitialized(delta.shape(), delta.dtype(), delta.device())?,
            Fresh::uninitialized(delta.shape(), delta.dtype(), delta.device())?,
        ]
    };
    let arguments = [
        Argument::Read(residual),
        Argument::Read(delta),
        Argument::Read(&weight),
        Argument::Write(&sum),
        Argument::Write(&y),
        Argument::U32(rows.count),
        Argument::U32(rows.width),
        Argument::U32(rows.row_threads),
        Argument::F32(norm.epsilon),
        Argument::F32(norm.weight_offset),
        Argument::F32(scale),
    ];
    // SAFETY: as `add_rms_norm` in kernels.gpu asks; shapes were checked by the caller.
    unsafe { launch(delta.device(), &rows.launch(&ADD_RMS_NORM, &arguments))? };
    Ok((sum, y))
}

pub(super) fn rms_norm_add(residual: &Tensor, delta: &Tensor, scale: f32, norm: &RmsNorm) -> Result<Fresh> {
    let weight = norm.weight.to_dtype(delta.dtype())?;
    let rows = Rows::of(&[residual, delta, &weight])?;
    // SAFETY: the kernel writes every row.
    let y = unsafe { Fresh::uninitialized(delta.shape(), delta.dtype(), delta.device())? };
    let arguments = [
        Argument::Read(residual),
        Argument::Read(delta),
        Argument::Read(&weight),
        Argument::Write(&y),
        Argument::U32(rows.count),
        Argument::U32(rows.width),
        Argument::U32(rows.row_threads),
        Argument::F32(norm.epsilon),
        Argument::F32(norm.weight_offset),
        Argument::F32(scale),
    ];
    // SAFETY: as `rms_norm_add` in kernels.gpu asks; shapes were checked by the caller.
    unsafe { launch(delta.device(), &rows.launch(&RMS_NORM_ADD, &arguments))? };
    Ok(y)
}

pub(super) fn backward(
    x: &Tensor,
    norm: &RmsNorm,
    dy: &Tensor,
    scale: f32,
    extra: Option<&Tensor>,
) -> Result<Fresh> {
    let weight = norm.weight.to_dtype(x.dtype())?;
    let rows = Rows::of(&[x, &weight, dy, extra.unwrap_or(dy)])?;
    // SAFETY: the kernel writes every row.
    let dx = unsafe { Fresh::uninitialized(x.shape(), x.dtype(), x.device())? };
    let arguments = [
        Argument::Read(x),
        Argument::Read(&weight),
        Argument::Read(dy),
        Argument::Read(extra.unwrap_or(dy)),
        Argument::Write(&dx),
        Argument::U32(rows.count),
        Argument::U32(rows.width),
        Argument::U32(rows.row_threads),
        Argument::F32(norm.epsilon),
        Argument::F32(norm.weight_offset),
        Argument::F32(scale),
        Argument::U32(extra.is_some().into()),
    ];
    // SAFETY: as `rms_norm_backward` in kernels.gpu asks; shapes were checked by the caller.
    unsafe { launch(x.device(), &rows.launch(&BACKWARD, &arguments))? };
    Ok(dx)
}

/// Rows whose products one thread adds up: few enough that the parts fill the GPU.
const PART_ROWS: usize = 64;

/// `Σ dy · x · factor` over the rows, `[D]` in f32.
pub(super) fn weight_backward(x: &Tensor, norm: &RmsNorm, dy: &Tensor) -> Result<Tensor> {
    let rows = Rows::of(&[x, dy])?;
    let (count, width, device) = (rows.count as usize, rows.width as usize, x.device());
    // SAFETY: the kernel writes every row's factor.
    let factors = unsafe { Fresh::uninitialized(count, DType::F32, device)? };
    let arguments = [
        Argument::Read(x),
        Argument::Write(&factors),
        Argument::U32(rows.count),
        Argument::U32(rows.width),
        Argument::U32(rows.row_threads),
        Argument::F32(norm.epsilon),
    ];
    // SAFETY: as `rms_norm_factors` in kernels.gpu asks.
    unsafe { launch(device, &rows.launch(&FACTORS, &arguments))? };

    let (factors, parts) = (factors.into_tensor(), count.div_ceil(PART_ROWS).max(1));
    // SAFETY: the kernel writes every column of every part.
    let sums = unsafe { Fresh::uninitialized((parts, width), DType::F32, device)? };
    let (threads, lanes) = (128, rows.variant.lanes());
    let launch_of_parts = Launch {
        kernel: &WEIGHT_BACKWARD,
        variant: rows.variant,
        groups: [(width / lanes).div_ceil(threads), parts, 1],
        threads,
        arguments: &[
            Argument::Read(x),
            Argument::Read(dy),
            Argument::Read(&factors),
            Argument::Write(&sums),
            Argument::U32(rows.count),
            Argument::U32(rows.width),
            Argument::U32(PART_ROWS as u32),
        ],
    };
    // SAFETY: as `rms_norm_weight_backward` in kernels.gpu asks.
    unsafe { launch(device, &launch_of_parts)? };
    crate::trace::launched(1);
    sums.into_tensor().sum(0)
}
