//! Memory that a thread keeps between tasks.

use std::cell::RefCell;

/// A cache line, which is also the largest vector.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(
    #[expect(dead_code, reason = "read through the slice of floats that the lines are lent as")] [f32; LINE],
);

const LINE: usize = 16;

thread_local! {
    /// Buffers that are not in use.
    static BUFFERS: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `body` with `length` floats of unspecified content, aligned to 64 bytes.
pub(crate) fn with_scratch<R>(length: usize, body: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut lines = BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_default();
    let needed = length.div_ceil(LINE);
    if lines.len() < needed {
        // Nothing of the old content is needed, so nothing is copied.
        lines.clear();
        lines.resize(needed, Line([0.0; LINE]));
    }
    // SAFETY: a line is 16 floats without padding, and `needed` lines hold `length` floats.
    let result = body(unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<f32>(), length) });
    BUFFERS.with_borrow_mut(|buffers| buffers.push(lines));
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_buffers_are_apart_and_aligned() {
        with_scratch(100, |outer| {
            outer.fill(1.0);
            with_scratch(1000, |inner| inner.fill(2.0));
            assert_eq!(outer.as_ptr().addr() % 64, 0);
            assert!(outer.len() == 100 && outer.iter().all(|&number| number == 1.0));
        });
        with_scratch(0, |empty| assert!(empty.is_empty()));
    }
}
