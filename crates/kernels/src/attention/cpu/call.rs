//! The arguments of a call, as slices.

use std::ops::Range;

use super::plan::{Extent, Panel};
use crate::{attention::AttentionParams, output::Output, view::StridedRows};

/// The arguments of a call.
pub(super) struct Call<'a> {
    /// `[rows, H, D]`
    pub(super) queries: StridedRows<'a>,
    pub(super) rows: usize,
    pub(super) heads: usize,
    pub(super) head_dim: usize,
    pub(super) params: AttentionParams,
    pub(super) segments: Vec<Cached<'a>>,
    /// `[rows, H, D]`
    pub(super) output: Output<f32>,
    /// `[H, rows]`: the logarithm of the sum of exponentials, if somebody asks for it.
    pub(super) lse: Option<Output<f32>>,
    /// See [`super::plan::Item::partial`].
    pub(super) partials: Output<f32>,
}

/// A segment and its cache.
pub(super) struct Cached<'a> {
    pub(super) extent: Extent,
    /// Its first row in the batch.
    pub(super) first_row: usize,
    /// Positions per chunk.
    pub(super) length: usize,
    /// Floats from one position's keys, or values, to the next one's: `G · D` or more.
    pub(super) stride: usize,
    /// Keys and values, each `[length, G, D]`.
    pub(super) chunks: Vec<[&'a [f32]; 2]>,
}

/// Keys and values of consecutive positions inside one chunk.
pub(super) struct Piece<'a> {
    /// How many of the keys asked for come before.
    pub(super) first: usize,
    pub(super) count: usize,
    /// `[count, G, D]`, with the stride of [`Cached`].
    pub(super) keys: &'a [f32],
    /// As `keys`.
    pub(super) values: &'a [f32],
}

impl<'a> Cached<'a> {
    /// The pieces that hold the `wanted` positions.
    pub(super) fn pieces(&self, wanted: Range<usize>) -> impl Iterator<Item = Piece<'a>> {
        let mut next = wanted.start;
        std::iter::from_fn(move || {
            if next >= wanted.end {
                return None;
            }
            let within = (next - self.extent.start) % self.length;
            let [keys, values] = self.chunks[(next - self.extent.start) / self.length];
            let count = (wanted.end - next).min(self.length - within);
            let first = next - wanted.start;
            next += count;
            let start = within * self.stride;
            Some(Piece { first, count, keys: &keys[start..], values: &values[start..] })
        })
    }
}

impl Call<'_> {
    /// The row of the batch and the head that a row of a panel stands for.
    pub(super) fn place(&self, segment: &Cached<'_>, panel: &Panel, row: usize) -> (usize, usize) {
        let share = segment.extent.share;
        let (token, head) = ((panel.first + row) / share, (panel.first + row) % share);
        (segment.first_row + token, panel.group * share + head)
    }

    /// Where a row of a panel lies in the output.
    pub(super) fn output_offset(&self, segment: &Cached<'_>, panel: &Panel, row: usize) -> usize {
        let (row, head) = self.place(segment, panel, row);
        (row * self.heads + head) * self.head_dim
    }

    /// Writes the logarithm of a row's sum of exponentials, `total · exp(maximum)`.
    ///
    /// # Safety
    /// Nobody else uses this row.
    pub(super) unsafe fn write_lse(
        &self,
        segment: &Cached<'_>,
        panel: &Panel,
        row: usize,
        maximum: f32,
        total: f32,
    ) {
        let Some(lse) = self.lse else { return };
        let (row, head) = self.place(segment, panel, row);
        // SAFETY: the row and the head are those of the call.
        unsafe { *lse.at(head * self.rows + row) = maximum + total.ln() };
    }
}
