//! The GPU implementation: an access per thread.

use candle_core::{Result, Tensor};

use super::Activation;
use crate::{
    fresh::Fresh,
    gpu::{Argument, Flat, Kernel, Module, launch, module},
};

static MODULE: Module = module!("gated");
static GATED: Kernel = Kernel::new(&MODULE, "gated");
static BACKWARD: Kernel = Kernel::new(&MODULE, "gated_backward");
static BACKWARD_IN_PLACE: Kernel = Kernel::new(&MODULE, "gated_backward_in_place");

pub(super) fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Fresh> {
    let flat = Flat::of(&[gate, up])?;
    // SAFETY: the kernel writes every element.
    let y = unsafe { Fresh::uninitialized(gate.shape(), gate.dtype(), gate.device())? };
    let arguments = [
        Argument::Read(gate),
        Argument::Read(up),
        Argument::Write(&y),
        Argument::U32(flat.count),
        Argument::U32(activation as u32),
    ];
    // SAFETY: as `gated` in kernels.gpu asks; shapes were checked by the caller.
    unsafe { launch(gate.device(), &flat.launch(&GATED, &arguments))? };
    Ok(y)
}

pub(super) fn backward(
    gate: &Tensor,
    up: &Tensor,
    dy: &Tensor,
    activation: Activation,
) -> Result<(Fresh, Fresh)> {
    let flat = Flat::of(&[gate, up, dy])?;
    let fresh = || {
        // SAFETY: the kernel writes every element.
        unsafe { Fresh::uninitialized(gate.shape(), gate.dtype(), gate.device()) }
    };
    let (d_gate, d_up) = (fresh()?, fresh()?);
    let arguments = [
        Argument::Read(gate),
        Argument::Read(up),
        Argument::Read(dy),
        Argument::Write(&d_gate),
        Argument::Write(&d_up),
        Argument::U32(flat.count),
        Argument::U32(activation as u32),
    ];
    // SAFETY: as `gated_backward` in kernels.gpu asks; shapes were checked by the caller.
    unsafe { launch(gate.device(), &flat.launch(&BACKWARD, &arguments))? };
    Ok((d_gate, d_up))
}

pub(super) fn backward_in_place(
    gate: &Tensor,
    up: &Tensor,
    dy: &Tensor,
    activation: Activation,
) -> Result<()> {
    let flat = Flat::of(&[gate, up, dy])?;
    let arguments = [
        Argument::Update(gate),
        Argument::Update(up),
        Argument::Read(dy),
        Argument::U32(flat.count),
        Argument::U32(activation as u32),
    ];
    // SAFETY: as `gated_backward_in_place` in kernels.gpu asks; shapes were checked by the caller.
    unsafe { launch(gate.device(), &flat.launch(&BACKWARD_IN_PLACE, &arguments)) }
}
