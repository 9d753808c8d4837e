//! Launches over all elements of tensors of one shape: an access per thread.

use candle_core::{Result, Tensor};

use super::{Argument, Kernel, Launch, Variant};

const THREADS: usize = 256;

/// The elements of a launch.
pub(crate) struct Flat {
    pub(crate) variant: Variant,
    /// Accesses: threads that have work.
    pub(crate) count: u32,
}

impl Flat {
    /// The elements of the first tensor; all have its shape and are accessed in the same way.
    pub(crate) fn of(tensors: &[&Tensor]) -> Result<Self> {
        let elements = tensors[0].elem_count();
        let variant = Variant::for_rows(tensors, elements)?;
        Ok(Self { variant, count: u32::try_from(elements / variant.lanes())? })
    }

    pub(crate) fn launch<'a>(&self, kernel: &'static Kernel, arguments: &'a [Argument<'a>]) -> Launch<'a> {
        let groups = (self.count as usize).div_ceil(THREADS);
        Launch { kernel, variant: self.variant, groups: [groups, 1, 1], threads: THREADS, arguments }
    }
}
