//! The GPU implementation: 8 elements per thread.

use candle_core::{Result, Tensor};

use super::Dropout;
use crate::{
    fresh::Fresh,
    gpu::{Argument, Float, Kernel, Launch, Module, Variant, launch, module},
};

static MODULE: Module = module!("dropout");
static DROPOUT: Kernel = Kernel::new(&MODULE, "dropout");

const THREADS: usize = 256;

pub(super) fn dropout(x: &Tensor, dropout: &Dropout) -> Result<Fresh> {
    let float = Float::of(x)?;
    // The end may be anything, but the start must be aligned.
    let aligned = x.layout().start_offset().is_multiple_of(float.lanes());
    let (variant, lanes) = if aligned { (Variant::Vector(float), 8) } else { (Variant::Scalar(float), 1) };
    // SAFETY: the kernel writes every element.
    let y = unsafe { Fresh::uninitialized(x.shape(), x.dtype(), x.device())? };
    let low_and_high = |number: u64| [Argument::U32(number as u32), Argument::U32((number >> 32) as u32)];
    let ([seed_low, seed_high], [first_low, first_high]) =
        (low_and_high(dropout.seed), low_and_high(dropout.first));
    let started = Launch {
        kernel: &DROPOUT,
        variant,
        groups: [x.elem_count().div_ceil(lanes).div_ceil(THREADS), 1, 1],
        threads: THREADS,
        arguments: &[
            Argument::Read(x),
            Argument::Write(&y),
            Argument::U32(u32::try_from(x.elem_count())?),
            seed_low,
            seed_high,
            first_low,
            first_high,
            Argument::U32(dropout.threshold()),
            Argument::F32(dropout.factor()),
        ],
    };
    // SAFETY: as `dropout` in kernels.gpu asks.
    unsafe { launch(x.device(), &started)? };
    Ok(y)
}
