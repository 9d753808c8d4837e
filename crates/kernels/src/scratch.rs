//! Memory that a thread keeps between tasks.

use std::{cell::RefCell, ops::Range};

/// A cache line, which is also the largest vector.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([f32; LINE]);

const LINE: usize = 16;

thread_local! {
    static LINES: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Calls `body` with `length` floats of unspecified content, aligned to 64 bytes. Not to be nested.
pub(crate) fn with_scratch<R>(length: usize, body: impl FnOnce(&mut [f32]) -> R) -> R {
    LINES.with_borrow_mut(|lines| {
        let needed = length.div_ceil(LINE);
        if lines.len() < needed {
            lines.resize(needed, Line([0.0; LINE]));
        }
        let Range { start, .. } = lines.as_mut_ptr_range();
        // SAFETY: a line is 16 floats without padding, and `needed` lines hold `length` floats.
        body(unsafe { std::slice::from_raw_parts_mut(start.cast::<f32>(), length) })
    })
}
