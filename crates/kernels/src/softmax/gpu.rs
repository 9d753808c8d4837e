//! The GPU implementation: a row stays in registers between its two passes.

use candle_core::{Result, Tensor};

use super::mask::{MaskRows, Seen};
use crate::{
    fresh::Fresh,
    gpu::{Argument, Kernel, Module, Rows, launch, module},
};

static MODULE: Module = module!("softmax");
static SOFTMAX: Kernel = Kernel::new(&MODULE, "softmax");
static MASKED: Kernel = Kernel::new(&MODULE, "softmax_masked");
static BACKWARD: Kernel = Kernel::new(&MODULE, "softmax_backward");

pub(super) fn softmax(x: &Tensor, seen: &Seen) -> Result<Fresh> {
    // SAFETY: both kernels write every row.
    let y = unsafe { Fresh::uninitialized(x.shape(), x.dtype(), x.device())? };
    match seen {
        Seen::UpTo { queries, offset } => up_to(x, &y, *queries, *offset)?,
        Seen::Masked(rows) => masked(x, &y, rows)?,
    }
    Ok(y)
}

fn up_to(x: &Tensor, y: &Fresh, queries: usize, offset: usize) -> Result<()> {
    let rows = Rows::of(&[x])?;
    let arguments = [
        Argument::Read(x),
        Argument::Write(y),
        Argument::U32(rows.count),
        Argument::U32(rows.width),
        Argument::U32(rows.row_threads),
        Argument::U32(u32::try_from(queries)?),
        Argument::U32(u32::try_from(offset)?),
    ];
    // SAFETY: as `softmax` in kernels.gpu asks.
    unsafe { launch(x.device(), &rows.launch(&SOFTMAX, &arguments)) }
}

fn masked(x: &Tensor, y: &Fresh, MaskRows { mask, middle, inner, strides }: &MaskRows) -> Result<()> {
    let rows = Rows::of(&[x, mask])?;
    let [outer_stride, middle_stride, inner_stride] = *strides;
    let arguments = [
        Argument::Read(x),
        Argument::Read(mask),
        Argument::Write(y),
        Argument::U32(rows.count),
        Argument::U32(rows.width),
        Argument::U32(rows.row_threads),
        Argument::U32(u32::try_from(*middle)?),
        Argument::U32(u32::try_from(*inner)?),
        Argument::U32(u32::try_from(outer_stride)?),
        Argument::U32(u32::try_from(middle_stride)?),
        Argument::U32(u32::try_from(inner_stride)?),
    ];
    // SAFETY: as `softmax_masked` in kernels.gpu asks: `MaskRows` leads each row of `x` to one of the mask.
    unsafe { launch(x.device(), &rows.launch(&MASKED, &arguments)) }
}

pub(super) fn backward(y: &Tensor, dy: &Tensor) -> Result<Fresh> {
    let rows = Rows::of(&[y, dy])?;
    // SAFETY: the kernel writes every row.
    let dx = unsafe { Fresh::uninitialized(y.shape(), y.dtype(), y.device())? };
    let arguments = [
        Argument::Read(y),
        Argument::Read(dy),
        Argument::Write(&dx),
        Argument::U32(rows.count),
        Argument::U32(rows.width),
        Argument::U32(rows.row_threads),
    ];
    // SAFETY: as `softmax_backward` in kernels.gpu asks; shapes were checked by the caller.
    unsafe { launch(y.device(), &rows.launch(&BACKWARD, &arguments))? };
    Ok(dx)
}
