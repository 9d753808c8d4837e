//! The GPU implementation: a thread turns the same columns of several heads.

use candle_core::{Result, Tensor};

use super::{Pairs, Rotation};
use crate::{
    fresh::Fresh,
    gpu::{Argument, Float, Kernel, Launch, Module, Variant, launch, module},
};

static MODULE: Module = module!("rope");
static ROPE: Kernel = Kernel::new(&MODULE, "rope");

/// Heads per thread (`HEADS` in the kernel).
const HEADS: usize = 4;
const THREADS: usize = 256;

/// `direction` is 1, or −1 to turn back.
pub(super) fn rope(x: &Tensor, rotation: &Rotation, direction: f32) -> Result<Fresh> {
    let (rows, heads, head_width) = x.dims3()?;
    let (_rows, half_width) = rotation.cos.dims2()?;
    let variant = variant(x, rotation, half_width)?;
    let pieces = (head_width - half_width) / variant.lanes();
    let count = pieces * heads.div_ceil(HEADS) * rows;
    // SAFETY: the kernel writes every element.
    let y = unsafe { Fresh::uninitialized(x.shape(), x.dtype(), x.device())? };
    let launch_of_pieces = Launch {
        kernel: &ROPE,
        variant,
        groups: [count.div_ceil(THREADS), 1, 1],
        threads: THREADS,
        arguments: &[
            Argument::Read(x),
            Argument::Read(&rotation.cos),
            Argument::Read(&rotation.sin),
            Argument::Write(&y),
            Argument::U32(u32::try_from(count)?),
            Argument::U32(u32::try_from(heads)?),
            Argument::U32(u32::try_from(head_width)?),
            Argument::U32(u32::try_from(half_width)?),
            Argument::U32(u32::from(rotation.pairs == Pairs::Neighbours)),
            Argument::F32(direction),
        ],
    };
    // SAFETY: as `rope` in kernels.gpu asks; shapes were checked by the caller.
    unsafe { launch(x.device(), &launch_of_pieces)? };
    Ok(y)
}

/// Vectors where halves and heads are whole numbers of them.
fn variant(x: &Tensor, rotation: &Rotation, half_width: usize) -> Result<Variant> {
    let float = Float::of(x)?;
    let widths = Variant::for_rows(&[x, &rotation.cos, &rotation.sin], x.dims()[2])?;
    let whole = half_width.is_multiple_of(float.lanes());
    Ok(if whole { widths } else { Variant::Scalar(float) })
}
