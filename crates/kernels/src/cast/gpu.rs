//! The GPU implementation: 8 elements per thread.

use candle_core::{DType, Result, Tensor};

use crate::{
    fresh::Fresh,
    gpu::{Argument, Float, Kernel, Launch, Module, Variant, launch, module},
};

static MODULE: Module = module!("cast");
static TO_F32: Kernel = Kernel::new(&MODULE, "cast_to_f32");
static TO_F16: Kernel = Kernel::new(&MODULE, "cast_to_f16");
static TO_BF16: Kernel = Kernel::new(&MODULE, "cast_to_bf16");
static SCALE: Kernel = Kernel::new(&MODULE, "scale");

pub(super) fn cast(x: &Tensor, dtype: DType, scale: f32) -> Result<Fresh> {
    // SAFETY: the kernel writes every element.
    let y = unsafe { Fresh::uninitialized(x.shape(), dtype, x.device())? };
    let kernel = match Float::of_type(dtype)? {
        Float::F32 => &TO_F32,
        Float::F16 => &TO_F16,
        Float::Bf16 => &TO_BF16,
    };
    let count = Argument::U32(u32::try_from(x.elem_count())?);
    run(x, kernel, &[Argument::Read(x), Argument::Write(&y), count, Argument::F32(scale)])?;
    Ok(y)
}

pub(super) fn scale_in_place(x: &Tensor, scale: f32) -> Result<()> {
    let count = Argument::U32(u32::try_from(x.elem_count())?);
    run(x, &SCALE, &[Argument::Update(x), count, Argument::F32(scale)])
}

fn run(x: &Tensor, kernel: &'static Kernel, arguments: &[Argument<'_>]) -> Result<()> {
    let float = Float::of(x)?;
    // The end may be anything, but the start must be aligned.
    let aligned = x.layout().start_offset().is_multiple_of(float.lanes());
    let (variant, lanes) = if aligned { (Variant::Vector(float), 8) } else { (Variant::Scalar(float), 1) };
    let threads = 256;
    let groups = [x.elem_count().div_ceil(lanes).div_ceil(threads), 1, 1];
    // SAFETY: as the kernels in kernels.gpu ask.
    unsafe { launch(x.device(), &Launch { kernel, variant, groups, threads, arguments }) }
}
