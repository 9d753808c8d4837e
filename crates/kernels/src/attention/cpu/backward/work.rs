//! The working memory of a task.

use super::plan::KeyRange;

/// Rows (of a head's queries, token by token) against which keys are taken at a time.
pub(super) const ROWS: usize = 64;

/// Keys of a tile: its scores stay in the first-level cache.
pub(super) const KEYS: usize = 64;

/// Numbers of each of keys, values and their gradients that a task works on at a time: all four together stay
/// in the second-level cache.
const SPAN: usize = 32 * 1024;

/// What a task works with: places in the scratch memory.
pub(super) struct Work {
    /// D rounded up to whole vectors.
    pub(super) padded: usize,
    /// `[span, padded]`: keys and values, and zeros behind them.
    pub(super) keys: *mut f32,
    pub(super) values: *mut f32,
    /// `[span, padded]`: their gradients.
    pub(super) d_keys: *mut f32,
    pub(super) d_values: *mut f32,
    /// `[ROWS, padded]`: scaled queries, and the gradients of the output.
    pub(super) queries: *mut f32,
    pub(super) d_out: *mut f32,
    /// `[D, ROWS]`: the same, transposed.
    pub(super) queries_across: *mut f32,
    pub(super) d_out_across: *mut f32,
    /// `[ROWS, padded]`: the gradient of the queries, before it is scaled.
    pub(super) d_queries: *mut f32,
    /// `[ROWS]`: lse, and `Σ out · d_out`.
    pub(super) lse: *mut f32,
    pub(super) deltas: *mut f32,
    /// `[KEYS, ROWS]`: scores, then weights.
    pub(super) weights: *mut f32,
    /// `[KEYS, ROWS]`: gradients of weights, then of scores.
    pub(super) d_scores: *mut f32,
}

impl Work {
    /// How many keys are worked on at a time, of a range of so many.
    pub(super) fn span(head_dim: usize, range: &KeyRange) -> usize {
        let most = SPAN / head_dim.next_multiple_of(16) / KEYS * KEYS;
        range.keys.len().min(most.max(KEYS))
    }

    /// How much `scratch` [`Self::new`] needs, for vectors of any size.
    pub(super) fn scratch_length(head_dim: usize, range: &KeyRange) -> usize {
        let padded = head_dim.next_multiple_of(16);
        let spans = 4 * Self::span(head_dim, range) * padded;
        spans + 5 * ROWS * padded + 2 * ROWS + 2 * ROWS + 2 * KEYS * ROWS
    }

    /// `scratch` is used as long as the result is.
    pub(super) fn new(head_dim: usize, range: &KeyRange, scratch: &mut [f32], lanes: usize) -> Self {
        let padded = head_dim.next_multiple_of(lanes);
        let span = Self::span(head_dim, range) * padded;
        let mut rest = scratch;
        // Every length is a multiple of 16, so that vectors are aligned.
        let mut take = |length: usize| {
            let (taken, others) = std::mem::take(&mut rest).split_at_mut(length.next_multiple_of(16));
            rest = others;
            taken.as_mut_ptr()
        };
        Self {
            padded,
            keys: take(span),
            values: take(span),
            d_keys: take(span),
            d_values: take(span),
            queries: take(ROWS * padded),
            d_out: take(ROWS * padded),
            // Packing may write up to a row beyond the last element.
            queries_across: take(ROWS * head_dim + ROWS),
            d_out_across: take(ROWS * head_dim + ROWS),
            d_queries: take(ROWS * padded),
            lse: take(ROWS),
            deltas: take(ROWS),
            weights: take(KEYS * ROWS),
            d_scores: take(KEYS * ROWS),
        }
    }
}
