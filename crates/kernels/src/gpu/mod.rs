//! Launching kernels on a GPU: one host code and, wherever the hardware lets us, one kernel text for both
//! families.
//!
//! A folder's `kernels.gpu` is compiled twice: after `prelude.cuh` by nvcc when the crate is built, and after
//! `prelude.metal` by the Metal driver when a kernel is first used. The two preludes give the same names to
//! what the languages spell differently. What only one family has (tensor cores, simdgroup matrices) stands in
//! a `.cu` or a `.metal` of the op's own.
//!
//! In the tests of this crate the same launches also run on the CPU, through the Metal emulator of the
//! testkit: see `emulator.rs`.

#![cfg_attr(
    not(any(feature = "cuda", feature = "metal")),
    allow(dead_code, reason = "without a GPU, only the tests' emulator reads it")
)]

#[cfg(any(feature = "cuda", feature = "metal"))]
mod cache;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
#[cfg(test)]
pub(crate) mod emulator;
#[cfg(feature = "metal")]
mod metal;

mod flat;
mod rows;

use candle_core::{DType, Device, Result, Tensor, bail};

pub(crate) use flat::Flat;
pub(crate) use rows::Rows;

use crate::{fresh::Fresh, trace, view::has_dense_rows};

/// The kernel texts of one op.
#[cfg_attr(
    not(feature = "metal"),
    allow(dead_code, reason = "without Metal, only the tests' emulator reads the texts")
)]
pub(crate) struct Module {
    /// The op's folder.
    pub(crate) name: &'static str,
    /// Prelude and kernels, for the Metal compiler.
    pub(crate) metal: &'static str,
    /// The same, compiled for NVIDIA GPUs.
    #[cfg(feature = "cuda")]
    cuda: &'static [u8],
    #[cfg(feature = "cuda")]
    modules: cuda::Modules,
    #[cfg(feature = "metal")]
    libraries: metal::Libraries,
}

/// The module of the folder that says so: its `kernels.gpu` behind what both preludes share.
macro_rules! module {
    ($folder:literal) => {
        $crate::gpu::Module::new(
            $folder,
            concat!(
                include_str!("../gpu/prelude.metal"),
                include_str!("../gpu/common.gpu"),
                include_str!(concat!("../", $folder, "/kernels.gpu"))
            ),
            #[cfg(feature = "cuda")]
            include_bytes!(concat!(env!("OUT_DIR"), "/", $folder, ".fatbin")),
        )
    };
}
pub(crate) use module;

/// A kernel that exists for each float type, for vectors of 16 bytes and for single elements. Its functions
/// are called `name_f32`, `name_f32_scalar`, `name_f16`…
pub(crate) struct Kernel {
    pub(crate) module: &'static Module,
    pub(crate) name: &'static str,
    #[cfg(feature = "cuda")]
    functions: [cuda::Functions; VARIANTS],
    #[cfg(feature = "metal")]
    pipelines: [metal::Pipelines; VARIANTS],
}

/// How many functions a kernel may have.
#[cfg(any(feature = "cuda", feature = "metal"))]
const VARIANTS: usize = 7;

/// Which of a kernel's functions to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    /// The only one: the name has no suffix.
    Plain,
    /// For 16 bytes at a time.
    Vector(Float),
    /// For one element at a time: rows that are no multiple of 16 bytes.
    Scalar(Float),
}

/// The element types that kernels exist for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Float {
    F32,
    F16,
    Bf16,
}

/// What a kernel is given, in the order of its parameters.
#[derive(Clone, Copy)]
pub(crate) enum Argument<'a> {
    /// A contiguous tensor that is read.
    Read(&'a Tensor),
    /// A tensor `[rows, heads, D]` that is read, whose rows are dense but may lie apart.
    ReadRows(&'a Tensor),
    /// A contiguous tensor that is changed in place.
    Update(&'a Tensor),
    /// A new result.
    Write(&'a Fresh),
    U32(u32),
    F32(f32),
}

/// One launch. Threads are counted along `x` only.
pub(crate) struct Launch<'a> {
    pub(crate) kernel: &'static Kernel,
    pub(crate) variant: Variant,
    pub(crate) groups: [usize; 3],
    pub(crate) threads: usize,
    pub(crate) arguments: &'a [Argument<'a>],
}

impl Module {
    pub(crate) const fn new(
        name: &'static str,
        metal: &'static str,
        #[cfg(feature = "cuda")] cuda: &'static [u8],
    ) -> Self {
        Self {
            name,
            metal,
            #[cfg(feature = "cuda")]
            cuda,
            #[cfg(feature = "cuda")]
            modules: cuda::Modules::new(),
            #[cfg(feature = "metal")]
            libraries: metal::Libraries::new(),
        }
    }
}

impl Kernel {
    pub(crate) const fn new(module: &'static Module, name: &'static str) -> Self {
        Self {
            module,
            name,
            #[cfg(feature = "cuda")]
            functions: [const { cuda::Functions::new() }; VARIANTS],
            #[cfg(feature = "metal")]
            pipelines: [const { metal::Pipelines::new() }; VARIANTS],
        }
    }

    /// The name of one of its functions.
    pub(crate) fn function(&self, variant: Variant) -> String {
        match variant {
            Variant::Plain => self.name.to_string(),
            Variant::Vector(float) => format!("{}_{}", self.name, float.name()),
            Variant::Scalar(float) => format!("{}_{}_scalar", self.name, float.name()),
        }
    }
}

impl Variant {
    /// Vectors where every row of `width` elements starts at a multiple of 16 bytes in all of `tensors`.
    pub(crate) fn for_rows(tensors: &[&Tensor], width: usize) -> Result<Self> {
        let float = Float::of(tensors[0])?;
        let lanes = float.lanes();
        let aligned = |tensor: &&Tensor| tensor.layout().start_offset().is_multiple_of(lanes);
        let whole = width.is_multiple_of(lanes) && tensors.iter().all(aligned);
        Ok(if whole { Self::Vector(float) } else { Self::Scalar(float) })
    }

    /// Elements that a thread handles at a time.
    pub(crate) fn lanes(self) -> usize {
        match self {
            Self::Vector(float) => float.lanes(),
            Self::Plain | Self::Scalar(_) => 1,
        }
    }

    pub(crate) fn element_bytes(self) -> usize {
        match self {
            Self::Plain => 1,
            Self::Vector(float) | Self::Scalar(float) => 16 / float.lanes(),
        }
    }

    #[cfg(any(feature = "cuda", feature = "metal"))]
    fn index(self) -> usize {
        match self {
            Self::Plain => 0,
            Self::Vector(float) => 1 + float as usize,
            Self::Scalar(float) => 4 + float as usize,
        }
    }
}

impl Float {
    pub(crate) fn of(tensor: &Tensor) -> Result<Self> {
        Self::of_type(tensor.dtype())
    }

    pub(crate) fn of_type(dtype: DType) -> Result<Self> {
        Ok(match dtype {
            DType::F32 => Self::F32,
            DType::F16 => Self::F16,
            DType::BF16 => Self::Bf16,
            other => bail!("there are kernels for f32, f16 and bf16, not for {other:?}"),
        })
    }

    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }

    /// Elements of 16 bytes.
    pub(crate) fn lanes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 8,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}

/// Starts a kernel on the device of its tensors. A launch without groups does nothing.
///
/// # Safety
/// The arguments are what the kernel's parameters ask for, in number, order and type; every index that it
/// forms from them and from the grid lies within the tensors; and it writes all of each new result.
pub(crate) unsafe fn launch(device: &Device, launch: &Launch<'_>) -> Result<()> {
    if launch.groups.contains(&0) {
        return Ok(());
    }
    for argument in launch.arguments {
        if let Argument::Read(tensor) | Argument::Update(tensor) = argument
            && !tensor.is_contiguous()
        {
            bail!("{}: a kernel was handed a tensor that is not contiguous", launch.kernel.name);
        }
        if let Argument::ReadRows(tensor) = argument
            && !has_dense_rows(tensor.layout())
        {
            bail!("{}: a kernel was handed a tensor whose rows are not dense", launch.kernel.name);
        }
    }
    trace::launched(1);
    match device {
        #[cfg(test)]
        Device::Cpu => emulator::launch(launch),
        #[cfg(feature = "cuda")]
        // SAFETY: the caller's promise.
        Device::Cuda(device) => unsafe { cuda::launch(device, launch) },
        #[cfg(feature = "metal")]
        // SAFETY: the caller's promise.
        Device::Metal(device) => unsafe { metal::launch(device, launch) },
        #[allow(unreachable_patterns)]
        other => bail!("{}: this program was built without kernels for {other:?}", launch.kernel.name),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{fs, path::Path};

    /// One that does not would read what the launch before it has not yet written.
    #[test]
    fn every_kernel_begins() {
        let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut kernels = 0;
        for folder in fs::read_dir(ops).unwrap() {
            let path = folder.unwrap().path().join("kernels.gpu");
            let Ok(text) = fs::read_to_string(&path) else { continue };
            let flat: String = text.chars().filter(|char| !char.is_whitespace() && *char != '\\').collect();
            for (start, _) in flat.match_indices("KERNEL(").chain(flat.match_indices("KERNEL_WITHIN(")) {
                let body = flat[start..].find('{').unwrap() + start;
                let name = &flat[start..(start + 50).min(body)];
                assert!(flat[body..].starts_with("{BEGIN();"), "{}: {name}", path.display());
                kernels += 1;
            }
        }
        assert!(kernels > 40, "{kernels} kernels were found");
    }
}
