//! An allocator that ends the process when the memory for one input leaves all proportion to its size.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Write;

/// Memory that may be live, beyond what was before, while an input of `input_bytes` is read.
///
/// JSON is the worst case: the two bytes `1,` become a value of 72 bytes in a vector that doubles, and while
/// it doubles old and new are live: about 110 bytes per byte. The constant is for caches of fixed size.
pub fn limit(input_bytes: usize) -> usize {
    128 * input_bytes + (16 << 20)
}

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static CEILING: Cell<isize> = const { Cell::new(isize::MAX) };
}

/// Runs `read` on `input` and ends the process if it holds more than [`limit`] on this thread.
pub fn within_limit<T>(input: &[u8], read: impl FnOnce(&[u8]) -> T) -> T {
    let ceiling = LIVE.get().saturating_add_unsigned(limit(input.len()));
    CEILING.set(ceiling);
    let result = read(input);
    CEILING.set(isize::MAX);
    result
}

/// The system's allocator with a count of live bytes for each thread.
#[derive(Debug)]
pub struct Counting;

impl Counting {
    fn grow(bytes: usize) {
        let live = LIVE.get().saturating_add_unsigned(bytes);
        LIVE.set(live);
        if live > CEILING.get() {
            CEILING.set(isize::MAX); // the message allocates too
            let message =
                format!("an input made {bytes} more bytes live, beyond 128 times its size + 16 MiB\n");
            std::io::stderr().write_all(message.as_bytes()).ok();
            std::process::abort();
        }
    }

    fn shrink(bytes: usize) {
        LIVE.set(LIVE.get().saturating_sub_unsigned(bytes));
    }
}

// SAFETY: every call goes to the system's allocator unchanged; the counters need no allocation and
// have no destructors, so they work at any time in a thread's life.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::grow(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::grow(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Old and new are live together at worst.
        Self::grow(size);
        Self::shrink(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.realloc(start, layout, size) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        Self::shrink(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(start, layout) }
    }
}
