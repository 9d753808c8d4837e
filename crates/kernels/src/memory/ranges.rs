//! Sets of address ranges, for an allocator.

use std::collections::{BTreeMap, BTreeSet};

/// Ranges that do not touch each other: neighbours become one.
#[derive(Debug)]
pub(super) struct Ranges {
    /// From each start to the length.
    by_start: BTreeMap<usize, usize>,
    /// `(length, start)`
    by_length: BTreeSet<(usize, usize)>,
    total: usize,
}

impl Ranges {
    pub(super) const fn new() -> Self {
        Self { by_start: BTreeMap::new(), by_length: BTreeSet::new(), total: 0 }
    }

    /// Bytes of all ranges.
    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// Adds a range that overlaps none.
    pub(super) fn insert(&mut self, mut start: usize, mut length: usize) {
        if length == 0 {
            return;
        }
        if let Some((&before, &bytes)) = self.by_start.range(..start).next_back()
            && before + bytes == start
        {
            self.remove(before, bytes);
            (start, length) = (before, length + bytes);
        }
        if let Some(&bytes) = self.by_start.get(&(start + length)) {
            self.remove(start + length, bytes);
            length += bytes;
        }
        self.by_start.insert(start, length);
        self.by_length.insert((length, start));
        self.total += length;
    }

    /// The first bytes of the shortest range that has so many.
    pub(super) fn take(&mut self, length: usize) -> Option<usize> {
        let &(found, start) = self.by_length.range((length, 0)..).next()?;
        self.cut(start, found, length);
        Some(start)
    }

    /// The `length` bytes from `start` on, if a range begins there and has them.
    pub(super) fn take_at(&mut self, start: usize, length: usize) -> bool {
        let Some(&found) = self.by_start.get(&start) else { return false };
        if found < length {
            return false;
        }
        self.cut(start, found, length);
        true
    }

    /// The longest range, `(start, length)`.
    pub(super) fn take_longest(&mut self) -> Option<(usize, usize)> {
        let &(length, start) = self.by_length.last()?;
        self.remove(start, length);
        Some((start, length))
    }

    fn cut(&mut self, start: usize, found: usize, length: usize) {
        self.remove(start, found);
        // What remains touches no other range, as the whole did not.
        self.insert(start + length, found - length);
    }

    fn remove(&mut self, start: usize, length: usize) {
        self.by_start.remove(&start);
        self.by_length.remove(&(length, start));
        self.total -= length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one_and_the_shortest_that_fits_is_taken() {
        let mut ranges = Ranges::new();
        for (start, length) in [(0, 10), (20, 10), (10, 10), (100, 12), (200, 5), (300, 0)] {
            ranges.insert(start, length);
        }
        assert_eq!(ranges.total(), 47);
        assert_eq!(ranges.take(11), Some(100)); // not the 30 bytes at 0
        assert_eq!(ranges.take(13), Some(0));
        assert!(!ranges.take_at(14, 2) && !ranges.take_at(13, 18) && ranges.take_at(13, 17));
        assert_eq!(ranges.take(6), None);
        assert_eq!(ranges.take_longest(), Some((200, 5)));
        assert_eq!((ranges.take_longest(), ranges.take_longest()), (Some((111, 1)), None));
        assert_eq!(ranges.total(), 0);
    }
}
