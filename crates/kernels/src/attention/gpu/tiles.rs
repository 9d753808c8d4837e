//! How the rows of segments are cut into blocks, and in which order blocks are started.

use std::cmp::Reverse;

/// Keys that a query sees, or queries that see a key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sight {
    pub(super) causal: bool,
    pub(super) window: Option<usize>,
}

impl Sight {
    /// Keys that are seen by any of the queries at `first..=last`, of `length`.
    pub(super) fn keys(self, first: usize, last: usize, length: usize) -> usize {
        let end = if self.causal { length.min(last + 1) } else { length };
        let start = self.window.map_or(0, |window| (first + 1).saturating_sub(window));
        end - start.min(end)
    }

    /// Queries, of `length`, that see any of the keys `first..=last`.
    pub(super) fn queries(self, first: usize, last: usize, length: usize) -> usize {
        let end = self.window.map_or(length, |window| length.min(last.saturating_add(window)));
        let start = if self.causal { first } else { 0 };
        end - start.min(end)
    }
}

/// Pairs (segment, block of `rows` rows) that cover `counts[segment]` rows of each segment. Blocks start in this order:
/// those with most work (of a segment's rows `first..=last`) come first, so that none is left running alone at the end.
pub(super) fn tiles(
    counts: &[usize],
    rows: usize,
    work: impl Fn(usize, usize, usize) -> usize,
) -> Vec<[u32; 2]> {
    let mut tiles = Vec::with_capacity(counts.iter().map(|count| count.div_ceil(rows)).sum());
    for (segment, &count) in counts.iter().enumerate() {
        for block in 0..count.div_ceil(rows) {
            let last = ((block + 1) * rows).min(count) - 1;
            tiles.push((work(segment, block * rows, last), [segment as u32, block as u32]));
        }
    }
    tiles.sort_by_key(|(work, _)| Reverse(*work)); // stable: equal ones stay in order
    tiles.into_iter().map(|(_, tile)| tile).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_in_one_block_and_the_longest_come_first() {
        let sight = Sight { causal: true, window: None };
        let counts = [5, 1, 70];
        let tiles = tiles(&counts, 32, |segment, first, last| sight.keys(first, last, counts[segment]));
        assert_eq!(tiles, [[2, 2], [2, 1], [2, 0], [0, 0], [1, 0]]);
    }

    #[test]
    fn sight_counts_what_a_pair_by_pair_search_finds() {
        let length = 20;
        for causal in [false, true] {
            for window in
                [None, Some(1), Some(6), Some(100)].into_iter().filter(|window| causal || window.is_none())
            {
                let sees = |query: usize, key: usize| {
                    !causal || key <= query && window.is_none_or(|window| key + window > query)
                };
                let sight = Sight { causal, window };
                for (first, last) in [(0, 0), (0, 7), (5, 12), (12, 19)] {
                    let keys = (0..length).filter(|key| (first..=last).any(|query| sees(query, *key)));
                    assert_eq!(sight.keys(first, last, length), keys.count(), "{sight:?} {first} {last}");
                    let queries = (0..length).filter(|query| (first..=last).any(|key| sees(*query, key)));
                    assert_eq!(
                        sight.queries(first, last, length),
                        queries.count(),
                        "{sight:?} {first} {last}"
                    );
                }
            }
        }
    }
}
