//! The working memory of an item.

use super::{
    call::{Cached, Call},
    plan::{Item, PANEL, PANELS_PER_ITEM},
};

/// Keys between two updates of the running maximum: their scores stay in the first-level cache.
pub(super) const BLOCK: usize = 64;

/// Floats from one element of packed keys to the next: a block, and room for a vector that begins in it.
pub(super) const PACKED_KEYS: usize = BLOCK + 16;

/// What an item works with: its segment and its places in the scratch memory.
pub(super) struct Work<'a> {
    pub(super) call: &'a Call<'a>,
    pub(super) segment: &'a Cached<'a>,
    /// D rounded up to whole vectors.
    pub(super) padded: usize,
    /// Whether several panels read a head's keys, which are then packed, and values.
    pub(super) shares: bool,
    /// Whether values are copied: to lie close together, or to be whole vectors.
    pub(super) copies_values: bool,
    /// `[D, PACKED_KEYS]`: a head's keys, transposed, if `shares`.
    pub(super) keys: *mut f32,
    /// `[BLOCK, padded]`: a head's values, if `copies_values`.
    pub(super) values: *mut f32,
    /// `[BLOCK, W]`: scores, then softmax weights.
    pub(super) scores: *mut f32,
    /// `[W]`: what the sums so far are multiplied with because the maximum rose.
    pub(super) factors: *mut f32,
    pub(super) states: [State; PANELS_PER_ITEM],
}

/// The running results of a panel.
#[derive(Clone, Copy)]
pub(super) struct State {
    /// `[D, W]`: the scaled queries.
    pub(super) queries: *mut f32,
    /// `[rows, padded]`: the weighted sums of values.
    pub(super) mixed: *mut f32,
    /// `[W]`: the largest scores.
    pub(super) maxima: *mut f32,
    /// `[W]`: the sums of weights.
    pub(super) totals: *mut f32,
}

impl<'a> Work<'a> {
    /// How much `scratch` [`Self::new`] needs, for vectors of any size.
    pub(super) fn scratch_length(head_dim: usize) -> usize {
        let padded = head_dim.next_multiple_of(16);
        let shared = padded * PACKED_KEYS + BLOCK + BLOCK * padded + BLOCK * PANEL + PANEL;
        shared + PANELS_PER_ITEM * (2 * PANEL * padded + 2 * PANEL)
    }

    /// `scratch` is used as long as the result is.
    pub(super) fn new(call: &'a Call<'a>, item: &Item, scratch: &mut [f32], lanes: usize) -> Self {
        let segment = &call.segments[item.segment];
        let padded = call.head_dim.next_multiple_of(lanes);
        let shares = segment.extent.panels_per_group() > 1;
        let mut rest = scratch;
        // Every length is a multiple of 16, so that vectors are aligned.
        let mut take = |length: usize| {
            let (taken, others) = std::mem::take(&mut rest).split_at_mut(length.next_multiple_of(16));
            rest = others;
            taken.as_mut_ptr()
        };
        Self {
            call,
            segment,
            padded,
            shares,
            copies_values: shares || padded != call.head_dim,
            // Packing may write up to a block beyond the last element.
            keys: take(call.head_dim * PACKED_KEYS + BLOCK),
            values: take(BLOCK * padded),
            scores: take(BLOCK * PANEL),
            factors: take(PANEL),
            states: std::array::from_fn(|_| State {
                queries: take(PANEL * call.head_dim),
                mixed: take(PANEL * padded),
                maxima: take(PANEL),
                totals: take(PANEL),
            }),
        }
    }
}
