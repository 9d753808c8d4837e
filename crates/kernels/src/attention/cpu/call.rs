//! The arguments of a call, as slices.

use std::ops::Range;

use super::plan::{Extent, Panel};
use crate::{attention::AttentionParams, output::Output};

/// The arguments of a call.
pub(super) struct Call<'a> {
    /// `[rows, H, D]`
    pub(super) queries: &'a [f32],
    pub(super) heads: usize,
    pub(super) head_dim: usize,
    pub(super) params: AttentionParams,
    pub(super) segments: Vec<Cached<'a>>,
    /// `[rows, H, D]`
    pub(super) output: Output<f32>,
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
    /// Keys and values, each `[length, G, D]`.
    pub(super) chunks: Vec<[&'a [f32]; 2]>,
}

/// Keys and values of consecutive positions inside one chunk.
pub(super) struct Piece<'a> {
    /// How many of the keys asked for come before.
    pub(super) first: usize,
    pub(super) count: usize,
    /// `[count, G, D]`
    pub(super) keys: &'a [f32],
    /// `[count, G, D]`
    pub(super) values: &'a [f32],
}

impl<'a> Cached<'a> {
    /// The pieces that hold the `wanted` positions; `row` is `G · D`.
    pub(super) fn pieces(&self, wanted: Range<usize>, row: usize) -> impl Iterator<Item = Piece<'a>> {
        let mut next = wanted.start;
        std::iter::from_fn(move || {
            if next >= wanted.end {
                return None;
            }
            let within = (next - self.extent.start) % self.length;
            let [keys, values] = self.chunks[(next - self.extent.start) / self.length];
            let count = (wanted.end - next).min(self.length - within);
            let range = within * row..(within + count) * row;
            let first = next - wanted.start;
            next += count;
            Some(Piece { first, count, keys: &keys[range.clone()], values: &values[range] })
        })
    }
}

impl Call<'_> {
    /// Where a row of a panel lies in the queries and in the output.
    pub(super) fn offset(&self, segment: &Cached<'_>, panel: &Panel, row: usize) -> usize {
        let share = segment.extent.share;
        let (token, head) = ((panel.first + row) / share, (panel.first + row) % share);
        ((segment.first_row + token) * self.heads + panel.group * share + head) * self.head_dim
    }
}
