//! The GPU implementation: one launch for a whole range.

use std::ops::Range;

use candle_core::{DType, Result, Tensor};

use super::{Clip, Coefficients};
use crate::{
    fresh::Fresh,
    gpu::{Argument, Flat, Float, Kernel, Launch, Module, Variant, launch, module},
};

static MODULE: Module = module!("optimizer");
static UPDATE: Kernel = Kernel::new(&MODULE, "update");
static SQUARE_SUM: Kernel = Kernel::new(&MODULE, "square_sum");
static ROOT_OF_SUM: Kernel = Kernel::new(&MODULE, "root_of_sum");

pub(super) fn update(
    state: &Tensor,
    gradient: &Tensor,
    range: Range<usize>,
    coefficients: &Coefficients,
    clip: Option<Clip<'_>>,
) -> Result<()> {
    let total = gradient.elem_count();
    let lanes = Float::F32.lanes();
    let aligned =
        [total, range.start, range.end, state.layout().start_offset(), gradient.layout().start_offset()];
    let variant = if aligned.iter().all(|offset| offset.is_multiple_of(lanes)) {
        Variant::Vector(Float::F32)
    } else {
        Variant::Scalar(Float::F32)
    };
    let lanes = variant.lanes();
    let flat = Flat { variant, count: u32::try_from(range.len() / lanes)? };
    let Coefficients { rule, betas: [a, b], epsilon, rate, keep, coupled_decay, root_factor } = *coefficients;
    let arguments = [
        Argument::Update(state),
        Argument::Read(gradient),
        // Without a limit, the kernel does not look at the norm.
        Argument::Read(clip.map_or(gradient, |clip| clip.norm)),
        Argument::U32(u32::try_from(total)?),
        Argument::U32(u32::try_from(range.start / lanes)?),
        Argument::U32(flat.count),
        Argument::U32(rule),
        Argument::F32(a),
        Argument::F32(b),
        Argument::F32(epsilon),
        Argument::F32(rate),
        Argument::F32(keep),
        Argument::F32(coupled_decay),
        Argument::F32(root_factor),
        Argument::F32(clip.map_or(0., |clip| clip.longest)),
    ];
    // SAFETY: as `update` in kernels.gpu asks; shapes and range were checked by the caller.
    unsafe { launch(state.device(), &flat.launch(&UPDATE, &arguments)) }
}

/// Threads of a group of the reduction, and the groups that fill a GPU.
const THREADS: usize = 512;
const GROUPS: usize = 512;

pub(super) fn norm(x: &Tensor) -> Result<Tensor> {
    let flat = Flat::of(&[x])?;
    let share = (flat.count as usize).div_ceil(GROUPS).next_multiple_of(THREADS);
    let groups = (flat.count as usize).div_ceil(share).max(1);
    // SAFETY: every group writes its sum.
    let sums = unsafe { Fresh::uninitialized(groups, DType::F32, x.device())? };
    let arguments =
        [Argument::Read(x), Argument::Write(&sums), Argument::U32(flat.count), Argument::U32(share as u32)];
    let sum = Launch {
        kernel: &SQUARE_SUM,
        variant: flat.variant,
        groups: [groups, 1, 1],
        threads: THREADS,
        arguments: &arguments,
    };
    // SAFETY: as `square_sum` in kernels.gpu asks.
    unsafe { launch(x.device(), &sum)? };

    let sums = sums.into_tensor();
    // SAFETY: the kernel writes the one element.
    let root = unsafe { Fresh::uninitialized(1, DType::F32, x.device())? };
    let arguments = [Argument::Read(&sums), Argument::Write(&root), Argument::U32(groups as u32)];
    let last = Launch {
        kernel: &ROOT_OF_SUM,
        variant: Variant::Plain,
        groups: [1, 1, 1],
        threads: THREADS,
        arguments: &arguments,
    };
    // SAFETY: as `root_of_sum` in kernels.gpu asks.
    unsafe { launch(x.device(), &last)? };
    Ok(root.into_tensor())
}
