//! How a call is cut into pieces that threads work on.
//!
//! A *panel* is up to 32 query rows that share a key/value head: the heads of its group, token by token. An
//! *item* is a few panels of one segment against a range of keys. If a segment has few items, ranges of
//! its keys become items of their own, whose partial results are then merged. All of it depends on
//! the shapes alone, never on the number of threads; so do the results.

use std::{cmp::Reverse, ops::Range};

/// Query rows of a panel: the lanes of a tile of scores.
pub(super) const PANEL: usize = 32;

/// Panels that read a block of keys one after the other, while it is in cache.
pub(super) const PANELS_PER_ITEM: usize = 4;

/// A segment gets ranges of keys only until it has this many items ...
pub(super) const ITEMS_PER_SEGMENT: usize = 32;

/// ... and no range is shorter, so that merging costs little.
const SHORTEST_RANGE: usize = 128;

/// What the plan needs to know of a segment.
#[derive(Debug, Clone)]
pub(super) struct Extent {
    /// New rows (tokens).
    pub(super) count: usize,
    pub(super) start: usize,
    pub(super) end: usize,
    /// Key/value heads.
    pub(super) groups: usize,
    /// Query heads per key/value head.
    pub(super) share: usize,
    pub(super) window: Option<usize>,
    /// Whether a token sees no later ones.
    pub(super) causal: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Panel {
    /// The key/value head.
    pub(super) group: usize,
    /// The first of `rows` among the `count · share` rows of this head.
    pub(super) first: usize,
    pub(super) rows: usize,
    /// The positions that at least one row sees.
    pub(super) visible: Range<usize>,
}

#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) segment: usize,
    pub(super) panels: Range<usize>,
    /// Positions.
    pub(super) keys: Range<usize>,
    /// Where partial results go (see [`PartialLayout`]); without it the item writes the output.
    pub(super) partial: Option<usize>,
}

/// The items of some panels, whose partial results are to be merged in this order.
#[derive(Debug, Clone)]
pub(super) struct Merge {
    pub(super) segment: usize,
    pub(super) panels: Range<usize>,
    /// Where the partial results of each range begin.
    pub(super) partials: Vec<usize>,
}

#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The most work first, so that threads finish together.
    pub(super) items: Vec<Item>,
    pub(super) merges: Vec<Merge>,
    /// Floats for all partial results.
    pub(super) partial_length: usize,
    /// Keys times panels, over all items.
    pub(super) work: usize,
}

/// One panel's partial result: `[rows, D]` weighted sums of values, then `rows` maxima, then `rows` sums of
/// weights, where `rows` is that of a full panel.
#[derive(Debug, Clone, Copy)]
pub(super) struct PartialLayout {
    pub(super) rows: usize,
    pub(super) head_dim: usize,
}

impl PartialLayout {
    pub(super) fn length(self) -> usize {
        self.rows * (self.head_dim + 2)
    }

    pub(super) fn maxima(self) -> usize {
        self.rows * self.head_dim
    }

    pub(super) fn sums(self) -> usize {
        self.rows * (self.head_dim + 1)
    }
}

impl Extent {
    /// The positions that a token's rows see.
    pub(super) fn visible(&self, token: usize) -> Range<usize> {
        if !self.causal {
            return self.start..self.end;
        }
        let end = self.end - self.count + token + 1;
        let start = self.window.map_or(self.start, |window| self.start.max(end.saturating_sub(window)));
        start..end
    }

    /// The positions that at least one of a head's rows sees. Rows go token by token.
    pub(super) fn visible_to(&self, rows: Range<usize>) -> Range<usize> {
        self.visible(rows.start / self.share).start..self.visible((rows.end - 1) / self.share).end
    }

    fn rows(&self) -> usize {
        self.count * self.share
    }

    /// Panels per key/value head.
    pub(super) fn panels_per_group(&self) -> usize {
        self.rows().div_ceil(PANEL)
    }

    fn panels(&self) -> usize {
        self.groups * self.panels_per_group()
    }

    /// Panels of one head follow one another.
    pub(super) fn panel(&self, index: usize) -> Panel {
        let per_group = self.panels_per_group();
        let first = index % per_group * PANEL;
        let rows = PANEL.min(self.rows() - first);
        Panel { group: index / per_group, first, rows, visible: self.visible_to(first..first + rows) }
    }

    pub(super) fn partial_layout(&self, head_dim: usize) -> PartialLayout {
        PartialLayout { rows: self.rows().min(PANEL), head_dim }
    }
}

impl Plan {
    pub(super) fn new<'a>(segments: impl Iterator<Item = &'a Extent>, head_dim: usize) -> Self {
        let mut plan = Self::default();
        for (index, segment) in segments.enumerate() {
            plan.add(index, segment, head_dim);
        }
        plan.items.sort_by_key(|item| Reverse(item.keys.len() * item.panels.len()));
        plan
    }

    fn add(&mut self, index: usize, segment: &Extent, head_dim: usize) {
        let panels = segment.panels();
        let most_ranges = ITEMS_PER_SEGMENT / panels.div_ceil(PANELS_PER_ITEM);
        for first in (0..panels).step_by(PANELS_PER_ITEM) {
            let panels = first..panels.min(first + PANELS_PER_ITEM);
            let visible = panels.clone().map(|panel| segment.panel(panel).visible);
            let keys =
                visible.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).expect("a panel at least");
            self.work += keys.len() * panels.len();
            let ranges = most_ranges.min(keys.len().div_ceil(SHORTEST_RANGE));
            if ranges <= 1 {
                self.items.push(Item { segment: index, panels, keys, partial: None });
                continue;
            }
            // Whole vectors' worth of keys.
            let length = keys.len().div_ceil(ranges).next_multiple_of(16);
            let mut partials = Vec::with_capacity(ranges);
            for start in keys.clone().step_by(length) {
                let keys = start..keys.end.min(start + length);
                let partial = Some(self.partial_length);
                partials.push(self.partial_length);
                self.items.push(Item { segment: index, panels: panels.clone(), keys, partial });
                self.partial_length += panels.len() * segment.partial_layout(head_dim).length();
            }
            self.merges.push(Merge { segment: index, panels, partials });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(count: usize, end: usize, window: Option<usize>) -> Extent {
        Extent { count, start: 0, end, groups: 2, share: 7, window, causal: true }
    }

    #[test]
    fn panels_cover_every_row_once_and_items_every_visible_key() {
        for (count, end) in [(1, 1), (1, 4096), (5, 5), (16, 8000), (512, 512), (300, 1000)] {
            for window in [None, Some(1), Some(700)] {
                let segment = extent(count, end, window);
                let plan = Plan::new([&segment].into_iter(), 64);
                let mut seen = vec![0; segment.groups * segment.rows()];
                for index in 0..segment.panels() {
                    let panel = segment.panel(index);
                    for row in panel.first..panel.first + panel.rows {
                        seen[panel.group * segment.rows() + row] += 1;
                    }
                    let mut ranges: Vec<_> =
                        plan.items.iter().filter(|item| item.panels.contains(&index)).collect();
                    ranges.sort_by_key(|item| item.keys.start);
                    assert!(ranges[0].keys.start <= panel.visible.start);
                    assert!(ranges[ranges.len() - 1].keys.end >= panel.visible.end);
                    assert!(ranges.windows(2).all(|pair| pair[0].keys.end == pair[1].keys.start));
                }
                assert!(seen.iter().all(|times| *times == 1));
            }
        }
    }

    #[test]
    fn one_row_against_a_long_cache_becomes_many_items() {
        let plan = Plan::new([&extent(1, 4096, None)].into_iter(), 64);
        assert_eq!(plan.items.len(), 32);
        assert_eq!(plan.merges.len(), 1);
        assert_eq!(plan.merges[0].partials.len(), 32);
        let windowed = Plan::new([&extent(1, 4096, Some(100))].into_iter(), 64);
        assert_eq!(windowed.items.len(), 1);
        assert_eq!(windowed.items[0].keys, 3996..4096);
    }
}
