//! Launches over the rows of a tensor: short rows have a warp each, long rows a whole group.

use candle_core::{Result, Tensor};

use super::{Argument, Kernel, Launch, Variant};

/// Accesses of so many elements that a thread of a row kernel keeps in registers (`HELD` in the kernels).
const fn held(lanes: usize) -> usize {
    if lanes == 4 { 8 } else { 4 }
}
/// Bytes of a row that a group of one warp is worth its start, and most warps of a group whose rows have a warp each. On an
/// H200, rows of 1,792 bytes in groups of one warp took a quarter longer than rows of 3,584.
const GROUP_BYTES: usize = 3584;
const MOST_SHARING: usize = 8;
/// Most threads of a group, `MOST_ROW_THREADS` in the kernels: with them each has 128 registers.
const MOST: usize = 512;

/// The rows of a launch.
pub(crate) struct Rows {
    pub(crate) variant: Variant,
    /// Rows.
    pub(crate) count: u32,
    /// Elements per row.
    pub(crate) width: u32,
    /// Threads per row.
    pub(crate) row_threads: u32,
}

impl Rows {
    /// Rows of the last dimension of the first tensor; all are accessed in the same way.
    pub(crate) fn of(tensors: &[&Tensor]) -> Result<Self> {
        let width = tensors[0].dims().last().copied().unwrap_or(1);
        let variant = Variant::for_rows(tensors, width)?;
        let accesses = width / variant.lanes();
        let row_threads = if accesses <= held(variant.lanes()) * 32 {
            32
        } else {
            // Two accesses a thread hide the latency of each other; more threads than that wait at barriers.
            accesses.div_ceil(2).next_multiple_of(32).min(MOST)
        };
        let count = tensors[0].elem_count().checked_div(width).unwrap_or(0);
        Ok(Self {
            variant,
            count: u32::try_from(count)?,
            width: u32::try_from(width)?,
            row_threads: row_threads as u32,
        })
    }

    pub(crate) fn launch<'a>(&self, kernel: &'static Kernel, arguments: &'a [Argument<'a>]) -> Launch<'a> {
        let row_threads = self.row_threads as usize;
        let row_bytes = self.width as usize * self.variant.element_bytes();
        let sharing = (GROUP_BYTES / row_bytes.max(1)).clamp(1, MOST_SHARING);
        let threads = if row_threads == 32 { 32 * sharing } else { row_threads };
        let groups = (self.count as usize).div_ceil(threads / row_threads);
        Launch { kernel, variant: self.variant, groups: [groups, 1, 1], threads, arguments }
    }
}
