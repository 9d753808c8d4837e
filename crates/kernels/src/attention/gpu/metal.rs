//! Apple GPUs: the kernels of `attention/metal/`.
//!
//! Keys and values of the cache lie in a buffer per chunk, and a kernel has at most 31 buffers: a launch works on a dozen
//! chunks, of whatever segments, and leaves a part of each row's result; the last launch joins the parts.

mod cached;
mod packed;

pub(super) use cached::attention;
pub(super) use packed::{backward, forward};

use super::call::Shape;
use crate::gpu::{Argument, Kernel, Launch, Module, Variant};

static MODULE: Module = Module::new(
    "attention",
    concat!(
        include_str!("../../gpu/prelude.metal"),
        include_str!("../../gpu/common.gpu"),
        include_str!("../metal/common.metal"),
        include_str!("../metal/matrices.metal"),
        include_str!("../metal/forward.metal"),
        include_str!("../metal/cached.metal"),
        include_str!("../metal/backward.metal"),
    ),
    #[cfg(feature = "cuda")]
    &[],
);

/// As in common.metal.
const BLOCK_ROWS: usize = 32;
/// As in common.metal.
const BLOCK_THREADS: usize = 128;

/// A kernel for heads of up to 64, 128 and 256.
type Sized = [Kernel; 3];

/// The kernels of this name.
macro_rules! sized {
    ($name:literal) => {
        [
            Kernel::new(&MODULE, concat!($name, "_64")),
            Kernel::new(&MODULE, concat!($name, "_128")),
            Kernel::new(&MODULE, concat!($name, "_256")),
        ]
    };
}
use sized;

impl Shape {
    fn launch<'a>(
        self,
        kernel: &'static Kernel,
        groups: [usize; 3],
        arguments: &'a [Argument<'a>],
    ) -> Launch<'a> {
        Launch { kernel, variant: Variant::Vector(self.float), groups, threads: BLOCK_THREADS, arguments }
    }

    /// The kernel for this head size.
    fn kernel_of(self, kernels: &'static Sized) -> &'static Kernel {
        &kernels[match self.head_dim {
            ..=64 => 0,
            65..=128 => 1,
            _ => 2,
        }]
    }
}
