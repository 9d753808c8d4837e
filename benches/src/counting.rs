//! An allocator that counts, where it is asked to.

use std::{
    alloc::{GlobalAlloc, Layout},
    sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed},
};

use metal_candle::device::Allocator;

/// The program's allocator. While [`count`] runs something, it counts the allocations of all threads; at other times that
/// costs one read.
pub(crate) struct CountingAllocator;

static PROGRAMS: Allocator = Allocator::new();

/// What was allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allocated {
    pub(crate) allocations: u64,
    pub(crate) bytes: u64,
    /// The most that was held at a time, beyond what was held at the beginning.
    pub(crate) peak: u64,
}

/// Runs something and counts what it allocates. One caller at a time.
pub(crate) fn count<T>(run: impl FnOnce() -> T) -> (Allocated, T) {
    ALLOCATIONS.store(0, Relaxed);
    BYTES.store(0, Relaxed);
    HELD.store(0, Relaxed);
    PEAK.store(0, Relaxed);
    IS_COUNTING.store(true, Relaxed);
    let value = run();
    IS_COUNTING.store(false, Relaxed);
    let peak = PEAK.load(Relaxed).unsigned_abs();
    (Allocated { allocations: ALLOCATIONS.load(Relaxed), bytes: BYTES.load(Relaxed), peak }, value)
}

static IS_COUNTING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);
static HELD: AtomicI64 = AtomicI64::new(0);
static PEAK: AtomicI64 = AtomicI64::new(0);

fn taken(bytes: usize) {
    if IS_COUNTING.load(Relaxed) {
        ALLOCATIONS.fetch_add(1, Relaxed);
        BYTES.fetch_add(bytes as u64, Relaxed);
        let held = HELD.fetch_add(bytes as i64, Relaxed) + bytes as i64;
        PEAK.fetch_max(held, Relaxed);
    }
}

fn given_back(bytes: usize) {
    if IS_COUNTING.load(Relaxed) {
        HELD.fetch_sub(bytes as i64, Relaxed);
    }
}

// SAFETY: every call goes to the program's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { PROGRAMS.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { PROGRAMS.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        given_back(layout.size());
        // SAFETY: the caller keeps the contract of `dealloc`, and the memory is of that allocator.
        unsafe { PROGRAMS.dealloc(start, layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        given_back(layout.size());
        taken(size);
        // SAFETY: the caller keeps the contract of `realloc`, and the memory is of that allocator.
        unsafe { PROGRAMS.realloc(start, layout, size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_what_was_held_at_a_time() {
        const BYTES: usize = 64 << 20;
        let (allocated, ()) = count(|| {
            for _ in 0..3 {
                drop(std::hint::black_box(vec![0u8; BYTES]));
            }
        });
        // Other tests run meanwhile, and they are small.
        assert!(allocated.allocations >= 3 && allocated.bytes >= 3 * BYTES as u64, "{allocated:?}");
        assert!((BYTES as u64..2 * BYTES as u64).contains(&allocated.peak), "{allocated:?}");
    }
}
