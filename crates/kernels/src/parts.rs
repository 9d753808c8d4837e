//! Division into parts of nearly the same size.

use std::ops::Range;

/// `whole` things in `count` parts, whose sizes differ by one at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts {
    pub(crate) whole: usize,
    pub(crate) count: usize,
}

impl Parts {
    /// As few parts as can be when none is larger than `most`; one for nothing.
    #[inline(always)]
    pub(crate) fn at_most(most: usize, whole: usize) -> Self {
        Self { whole, count: whole.div_ceil(most.max(1)).max(1) }
    }

    /// The first of a part; for the part after the last, `whole`.
    #[inline(always)]
    pub(crate) fn start(self, part: usize) -> usize {
        self.whole * part / self.count
    }

    #[inline(always)]
    pub(crate) fn range(self, part: usize) -> Range<usize> {
        self.start(part)..self.start(part + 1)
    }

    pub(crate) fn ranges(self) -> impl Iterator<Item = Range<usize>> {
        (0..self.count).map(move |part| self.range(part))
    }

    /// The size of the largest part.
    pub(crate) fn largest(self) -> usize {
        self.whole.div_ceil(self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_even_and_cover_the_whole() {
        for (most, whole) in [(14, 512), (14, 15), (1, 3), (5, 0), (0, 4)] {
            let parts = Parts::at_most(most, whole);
            let mut next = 0;
            for range in parts.ranges() {
                assert_eq!(range.start, next);
                assert!(range.len() <= most.max(1) && range.len() + 1 >= parts.largest());
                next = range.end;
            }
            assert_eq!(next, whole);
        }
    }
}
