//! The GPU implementation: a number and its id make one integer that is larger if better. Groups find the best of
//! parts of a row, and further rounds the best of those, until a row has one part.

use candle_core::{DType, Device, Result, Tensor};

use crate::{
    fresh::Fresh,
    gpu::{Argument, Float, Kernel, Launch, Module, Variant, launch, module},
};

static MODULE: Module = module!("sample");
static LARGEST: Kernel = Kernel::new(&MODULE, "largest_of_parts");
static LARGEST_OF_MEMBERS: Kernel = Kernel::new(&MODULE, "largest_of_members");
static SORTED_PARTS: Kernel = Kernel::new(&MODULE, "sorted_parts");
static SORTED_MEMBERS: Kernel = Kernel::new(&MODULE, "sorted_members");
static UNPACK: Kernel = Kernel::new(&MODULE, "unpack_members");

/// Elements of a part whose largest a group finds.
const LARGEST_PART: usize = 2048;
/// Threads of such a group.
const LARGEST_THREADS: usize = 256;
/// Elements that a group sorts (`PART` in the kernels).
const SORTED_PART: usize = 4096;
/// Threads of such a group.
const SORTED_THREADS: usize = 1024;

pub(super) fn argmax(logits: &Tensor) -> Result<Tensor> {
    let (rows, vocabulary) = logits.dims2()?;
    let device = logits.device();
    let parts = vocabulary.div_ceil(LARGEST_PART);
    // SAFETY: a group writes each member.
    let members = unsafe { Fresh::uninitialized((rows, parts), DType::I64, device)? };
    let arguments = [
        Argument::Read(logits),
        Argument::Write(&members),
        Argument::U32(u32::try_from(vocabulary)?),
        Argument::U32(LARGEST_PART as u32),
    ];
    let launch_of_parts = Launch {
        kernel: &LARGEST,
        variant: Variant::Scalar(Float::of(logits)?),
        groups: [parts, rows, 1],
        threads: LARGEST_THREADS,
        arguments: &arguments,
    };
    // SAFETY: as `largest_of_parts` in kernels.gpu asks.
    unsafe { launch(device, &launch_of_parts)? };

    let members = members.into_tensor();
    // SAFETY: a group writes the id of each row.
    let ids = unsafe { Fresh::uninitialized(rows, DType::U32, device)? };
    let arguments = [Argument::Read(&members), Argument::Write(&ids), Argument::U32(parts as u32)];
    let launch_of_rows = Launch {
        kernel: &LARGEST_OF_MEMBERS,
        variant: Variant::Plain,
        groups: [rows, 1, 1],
        threads: 32,
        arguments: &arguments,
    };
    // SAFETY: as `largest_of_members` in kernels.gpu asks.
    unsafe { launch(device, &launch_of_rows)? };
    Ok(ids.into_tensor())
}

pub(super) fn top_k(logits: &Tensor, k: usize) -> Result<(Tensor, Tensor)> {
    let (rows, vocabulary) = logits.dims2()?;
    let (device, float) = (logits.device(), Float::of(logits)?);
    let mut members = sort(&SORTED_PARTS, Variant::Scalar(float), logits, [rows, vocabulary, k])?;
    // Each round leaves `k` of every part, so that parts become fewer.
    while members.dim(1)? > k {
        let count = members.dim(1)?;
        members = sort(&SORTED_MEMBERS, Variant::Plain, &members, [rows, count, k])?;
    }
    unpack(&members, logits.dtype(), float, device)
}

/// The best `k` of each part of a row, sorted: `[R, parts · k]`, in the last part no more than it has.
fn sort(
    kernel: &'static Kernel,
    variant: Variant,
    from: &Tensor,
    [rows, count, k]: [usize; 3],
) -> Result<Tensor> {
    let parts = count.div_ceil(SORTED_PART);
    let last = (count - (parts - 1) * SORTED_PART).min(k);
    let width = (parts - 1) * k + last;
    // SAFETY: the groups write all members of all parts.
    let members = unsafe { Fresh::uninitialized((rows, width), DType::I64, from.device())? };
    let arguments = [
        Argument::Read(from),
        Argument::Write(&members),
        Argument::U32(u32::try_from(count)?),
        Argument::U32(u32::try_from(width)?),
        Argument::U32(k as u32),
    ];
    let launch_of_parts =
        Launch { kernel, variant, groups: [parts, rows, 1], threads: SORTED_THREADS, arguments: &arguments };
    // SAFETY: as `sorted_parts` and `sorted_members` in kernels.gpu ask.
    unsafe { launch(from.device(), &launch_of_parts)? };
    Ok(members.into_tensor())
}

fn unpack(members: &Tensor, dtype: DType, float: Float, device: &Device) -> Result<(Tensor, Tensor)> {
    let (shape, count) = (members.shape(), members.elem_count());
    // SAFETY: the kernel writes all elements of both.
    let [values, ids] = unsafe {
        [Fresh::uninitialized(shape, dtype, device)?, Fresh::uninitialized(shape, DType::U32, device)?]
    };
    let launch_of_all = Launch {
        kernel: &UNPACK,
        variant: Variant::Scalar(float),
        groups: [count.div_ceil(LARGEST_THREADS), 1, 1],
        threads: LARGEST_THREADS,
        arguments: &[
            Argument::Read(members),
            Argument::Write(&values),
            Argument::Write(&ids),
            Argument::U32(u32::try_from(count)?),
        ],
    };
    // SAFETY: as `unpack_members` in kernels.gpu asks.
    unsafe { launch(device, &launch_of_all)? };
    Ok((values.into_tensor(), ids.into_tensor()))
}
