//! The GPU implementation: 8 elements per thread.

use candle_core::{DType, Result, Tensor};

use crate::gpu::{Argument, Float, Kernel, Launch, Module, Variant, launch, module};

static MODULE: Module = module!("accumulate");
static INTO_F32: Kernel = Kernel::new(&MODULE, "accumulate");
static INTO_ALIKE: Kernel = Kernel::new(&MODULE, "accumulate_alike");

const THREADS: usize = 256;

pub(super) fn accumulate(into: &Tensor, x: &Tensor) -> Result<()> {
    let float = Float::of(x)?;
    // The end may be anything, but both starts must be aligned.
    let is_aligned =
        |tensor: &Tensor, float: Float| tensor.layout().start_offset().is_multiple_of(float.lanes());
    let aligned = is_aligned(x, float) && is_aligned(into, Float::of(into)?);
    let (variant, lanes) = if aligned { (Variant::Vector(float), 8) } else { (Variant::Scalar(float), 1) };
    let started = Launch {
        kernel: if into.dtype() == DType::F32 { &INTO_F32 } else { &INTO_ALIKE },
        variant,
        groups: [x.elem_count().div_ceil(lanes).div_ceil(THREADS), 1, 1],
        threads: THREADS,
        arguments: &[
            Argument::Update(into),
            Argument::Read(x),
            Argument::U32(u32::try_from(x.elem_count())?),
        ],
    };
    // SAFETY: as `accumulate` in kernels.gpu asks; the caller has checked the shapes.
    unsafe { launch(x.device(), &started) }
}
