//! How a backward pass is cut into tasks. It depends on the shapes alone, but for the order.

use std::{cmp::Reverse, ops::Range};

use super::{super::plan::Extent, Call};

/// A sequence gets at most so many ranges of keys: each but the first has sums for the queries that see it ...
const RANGES_PER_SEGMENT: usize = 8;

/// ... and no range is shorter, unless the sequence is.
const SHORTEST_RANGE: usize = 128;

/// Keys of one sequence, and the tokens that see at least one of them; both count from the sequence's start.
#[derive(Debug, Clone)]
pub(super) struct KeyRange {
    pub(super) segment: usize,
    pub(super) keys: Range<usize>,
    pub(super) tokens: Range<usize>,
    /// Where the sums of its queries' gradients begin: `[G, tokens, share, D]`. Without it, they go where the
    /// results go: of the ranges of a sequence, that is the first.
    pub(super) partial: Option<usize>,
}

#[derive(Debug, Default)]
pub(super) struct Plan {
    /// In the order of sequences, and of keys within.
    pub(super) ranges: Vec<KeyRange>,
    /// Floats for all sums.
    pub(super) partial_length: usize,
    /// Keys times rows, over all tasks.
    pub(super) work: usize,
    groups: usize,
}

impl KeyRange {
    /// An upper bound of the pairs of a key and a token.
    fn size(&self) -> usize {
        self.keys.len() * self.tokens.len()
    }
}

impl Plan {
    pub(super) fn new(call: &Call<'_>) -> Self {
        let mut plan = Self { groups: call.groups, ..Self::default() };
        for (segment, (_, extent)) in call.segments.iter().enumerate() {
            let ranges = extent.count.div_ceil(SHORTEST_RANGE).min(RANGES_PER_SEGMENT);
            let length = extent.count.div_ceil(ranges).next_multiple_of(64);
            for start in (0..extent.count).step_by(length) {
                let keys = start..extent.count.min(start + length);
                let tokens = tokens_that_see(extent, &keys);
                let partial = (start > 0).then_some(plan.partial_length);
                if partial.is_some() {
                    plan.partial_length += tokens.len() * call.heads * call.head_dim;
                }
                let range = KeyRange { segment, keys, tokens, partial };
                plan.work += range.size() * call.heads;
                plan.ranges.push(range);
            }
        }
        plan
    }

    /// Range and key/value head of each task. The pool gives each thread a range of neighbours, so tasks are
    /// dealt out by size: each thread gets large and small ones, the large ones first.
    pub(super) fn order(&self, threads: usize) -> Vec<(usize, usize)> {
        let tasks =
            (0..self.ranges.len()).flat_map(|range| (0..self.groups).map(move |group| (range, group)));
        let mut tasks: Vec<_> = tasks.collect();
        tasks.sort_by_key(|(range, _)| Reverse(self.ranges[*range].size()));
        let hands = (0..threads).rev();
        hands.flat_map(|hand| tasks.iter().skip(hand).step_by(threads).copied()).collect()
    }

    /// The ranges of a segment that have sums, in the order of keys.
    pub(super) fn sums_of(&self, segment: usize) -> impl Iterator<Item = (&KeyRange, usize)> {
        let first = self.ranges.partition_point(|range| range.segment < segment);
        let ranges = self.ranges[first..].iter().take_while(move |range| range.segment == segment);
        ranges.filter_map(|range| Some((range, range.partial?)))
    }

    /// Tokens whose queries have sums to be added, in blocks, with their segments.
    pub(super) fn blocks_to_add(&self, call: &Call<'_>, length: usize) -> Vec<(usize, Range<usize>)> {
        let mut blocks = Vec::new();
        for (segment, (_, extent)) in call.segments.iter().enumerate() {
            let starts = self.sums_of(segment).map(|(range, _)| range.tokens.start);
            let Some(first) = starts.min() else { continue };
            let tokens = (first..extent.count).step_by(length);
            blocks.extend(tokens.map(|start| (segment, start..extent.count.min(start + length))));
        }
        blocks
    }
}

/// The tokens that see at least one of these keys.
pub(super) fn tokens_that_see(extent: &Extent, keys: &Range<usize>) -> Range<usize> {
    let start = if extent.causal { keys.start } else { 0 };
    let end =
        extent.window.map_or(extent.count, |window| extent.count.min((keys.end - 1).saturating_add(window)));
    start..end
}

/// The tokens that the first range of a sequence sees, whose results are written without sums.
pub(super) fn tokens_written_first(plan: &Plan, segment: usize) -> Range<usize> {
    let first = plan.ranges.partition_point(|range| range.segment < segment);
    plan.ranges[first].tokens.clone()
}
