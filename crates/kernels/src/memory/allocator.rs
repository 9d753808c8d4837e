//! An allocator for tensors.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    ptr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::ranges::Ranges;

/// From this many bytes on, blocks lie on huge pages.
const LARGE: usize = 64 << 10;
/// From this many bytes on, blocks begin with a cache line, the widest vector's: for less, the system takes longer over that
/// than it gains.
const ALIGNED: usize = 16 << 10;
/// Where those blocks begin, and of how many bytes large ones are a multiple.
const LINE: usize = 64;
/// Zeros of so many bytes stay out of memory until somebody writes there.
const LAZY: usize = 32 << 20;
/// The most that is kept of freed blocks; the rest goes back to the system.
const KEPT: usize = 256 << 20;
/// Bytes of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// The allocator of our programs: tensors lie on huge pages, begin with a cache line, and are made again of the memory
/// of those before them. A matrix product on two threads of a virtual machine runs 1.2 to 1.5 times as fast as on the
/// system's small pages, whose addresses cost more to translate than their numbers to multiply; and nothing waits for
/// pages to be cleared.
///
/// A program takes it with `#[global_allocator] static ALLOCATOR: Allocator = Allocator::new();`.
///
/// On Linux, blocks of 64 KiB and more come from one region of addresses, which costs nothing until it is written. Up
/// to 256 MiB of freed blocks are kept. Smaller blocks, all blocks under a limit on addresses (`ulimit -v`), and all on
/// other systems are the system's.
#[derive(Debug)]
pub struct Allocator {
    space: Mutex<Space>,
    /// The region, to tell its blocks from the system's; empty until there is one.
    start: AtomicUsize,
    end: AtomicUsize,
}

/// What is free of the region.
#[derive(Debug)]
struct Space {
    is_ready: bool,
    /// Has been written.
    used: Ranges,
    /// Reads as zeros, and takes no memory but for the ends of huge pages.
    fresh: Ranges,
}

impl Allocator {
    /// One that has no memory yet.
    pub const fn new() -> Self {
        let space = Space { is_ready: false, used: Ranges::new(), fresh: Ranges::new() };
        Self { space: Mutex::new(space), start: AtomicUsize::new(0), end: AtomicUsize::new(0) }
    }

    /// Whether a block came from the region.
    fn owns(&self, block: *mut u8) -> bool {
        (self.start.load(Ordering::Relaxed)..self.end.load(Ordering::Relaxed)).contains(&block.addr())
    }

    /// The lock; the region exists, unless the system refuses it.
    fn space(&self) -> MutexGuard<'_, Space> {
        let mut space = self.space.lock().unwrap_or_else(PoisonError::into_inner);
        if !space.is_ready {
            space.is_ready = true;
            if let Some((start, length)) = system::reserve() {
                self.start.store(start, Ordering::Relaxed);
                self.end.store(start + length, Ordering::Relaxed);
                space.fresh.insert(start, length);
            }
        }
        space
    }

    /// A block of the region, and whether it reads as zeros.
    fn take(&self, layout: Layout, is_fresh: bool) -> Option<(*mut u8, bool)> {
        if !is_large(layout) {
            return None;
        }
        let length = rounded(layout.size())?;
        let mut space = self.space();
        let used = if is_fresh { None } else { space.used.take(length) };
        let (start, is_zero) = match used {
            Some(start) => (start, false),
            None => (space.fresh.take(length)?, true),
        };
        Some((ptr::with_exposed_provenance_mut(start), is_zero))
    }

    /// Takes back bytes of the region.
    fn give(&self, start: usize, length: usize) {
        let mut space = self.space();
        space.used.insert(start, length);
        while space.used.total() > KEPT {
            let Some((start, length)) = space.used.take_longest() else { break };
            // Whole huge pages: to break one would leave small ones.
            let first = start.next_multiple_of(HUGE_PAGE);
            let end = (start + length) / HUGE_PAGE * HUGE_PAGE;
            if first >= end || !system::release(first, end - first) {
                space.used.insert(start, length);
                break;
            }
            space.fresh.insert(first, end - first);
            space.used.insert(start, first - start);
            space.used.insert(end, start + length - end);
        }
    }

    /// Makes a block of the region longer or shorter in its place.
    fn resize(&self, start: usize, old: usize, new: usize) -> bool {
        if new <= old {
            if new < old {
                self.give(start + new, old - new);
            }
            return true;
        }
        let mut space = self.space();
        space.used.take_at(start + old, new - old) || space.fresh.take_at(start + old, new - old)
    }
}

impl Default for Allocator {
    fn default() -> Self {
        Self::new()
    }
}

fn is_large(layout: Layout) -> bool {
    layout.size() >= LARGE && layout.align() <= LINE
}

/// The bytes of the region that a large block takes.
fn rounded(size: usize) -> Option<usize> {
    size.checked_next_multiple_of(LINE)
}

/// As the system gets it to see.
fn aligned(layout: Layout) -> Layout {
    if layout.size() < ALIGNED {
        return layout;
    }
    layout.align_to(LINE).unwrap_or(layout)
}

// SAFETY: a block of the region is taken out of the free ranges while it lasts, so nobody else has any of it; it is
// as long as was asked for, begins at a multiple of `LINE`, and is mapped as long as the process lives. Whether a block
// is of the region is told by its address. Nothing here panics, and what the free ranges need for themselves is
// smaller than `LARGE`.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match self.take(layout, false) {
            Some((block, _)) => block,
            // SAFETY: the caller's promise; the size is the same.
            None => unsafe { System.alloc(aligned(layout)) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match self.take(layout, layout.size() >= LAZY) {
            Some((block, is_zero)) => {
                if !is_zero {
                    // SAFETY: the block has so many bytes.
                    unsafe { block.write_bytes(0, layout.size()) };
                }
                block
            }
            // SAFETY: as for `alloc`.
            None => unsafe { System.alloc_zeroed(aligned(layout)) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if self.owns(block) {
            // The caller promises that the size is that of before, which could be rounded.
            self.give(block.addr(), rounded(layout.size()).unwrap_or(0));
        } else {
            // SAFETY: the block is the system's, with this layout.
            unsafe { System.dealloc(block, aligned(layout)) }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if self.owns(block)
            && new_size >= LARGE
            && let (Some(old), Some(new)) = (rounded(layout.size()), rounded(new_size))
            && self.resize(block.addr(), old, new)
        {
            return block;
        }
        // SAFETY: the caller promises a new size that makes a layout.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        if !self.owns(block)
            && !is_large(new_layout)
            && aligned(new_layout).align() == aligned(layout).align()
        {
            // SAFETY: the block is the system's, with this layout.
            return unsafe { System.realloc(block, aligned(layout), new_size) };
        }
        // SAFETY: both blocks have the bytes that are copied; the old one is given back with its layout.
        unsafe {
            let new = self.alloc(new_layout);
            if !new.is_null() {
                ptr::copy_nonoverlapping(block, new, layout.size().min(new_size));
                self.dealloc(block, layout);
            }
            new
        }
    }
}

#[cfg(target_os = "linux")]
mod system {
    use super::HUGE_PAGE;
    use crate::memory::physical_bytes;

    /// Addresses for twice the machine's memory, on huge pages where the system has them: start and length.
    pub(super) fn reserve() -> Option<(usize, usize)> {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `limit` has room for one.
        let told = unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) } == 0;
        if !told || limit.rlim_cur != libc::RLIM_INFINITY {
            return None;
        }
        let length = usize::try_from(physical_bytes()?).ok()?.checked_mul(2)?.next_multiple_of(HUGE_PAGE);
        let mapped = length.checked_add(HUGE_PAGE)?;
        // SAFETY: new addresses, which belong to nobody.
        let start = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            libc::mmap(std::ptr::null_mut(), mapped, access, kind, -1, 0)
        };
        if start == libc::MAP_FAILED {
            return None;
        }
        // SAFETY: our own mapping, whose contents this never changes. A refusal costs speed, not correctness.
        unsafe { libc::madvise(start, mapped, libc::MADV_HUGEPAGE) };
        Some((start.expose_provenance().next_multiple_of(HUGE_PAGE), length))
    }

    /// Gives whole huge pages of the region back: they read as zeros from now on.
    pub(super) fn release(start: usize, length: usize) -> bool {
        // SAFETY: free bytes of the region, whose contents nobody reads.
        unsafe {
            let start = std::ptr::with_exposed_provenance_mut(start);
            libc::madvise(start, length, libc::MADV_DONTNEED) == 0
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    pub(super) fn reserve() -> Option<(usize, usize)> {
        None
    }

    pub(super) fn release(_start: usize, _length: usize) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 4).unwrap()
    }

    /// A block that is full of its own number, as long as it lives.
    struct Block<'a> {
        allocator: &'a Allocator,
        start: *mut u8,
        size: usize,
        content: u8,
    }

    impl<'a> Block<'a> {
        fn new(allocator: &'a Allocator, size: usize, content: u8, is_zeroed: bool) -> Self {
            // SAFETY: the size is not zero; what is written fits.
            unsafe {
                let start = if is_zeroed {
                    allocator.alloc_zeroed(layout(size))
                } else {
                    allocator.alloc(layout(size))
                };
                assert!(!start.is_null() && (size < ALIGNED || start.addr() % LINE == 0));
                let block = Self { allocator, start, size, content };
                assert!(!is_zeroed || block.bytes().iter().all(|&byte| byte == 0));
                start.write_bytes(content, size);
                block
            }
        }

        fn bytes(&self) -> &[u8] {
            // SAFETY: the block lives and has been written.
            unsafe { std::slice::from_raw_parts(self.start, self.size) }
        }

        fn resize(&mut self, size: usize) {
            // SAFETY: the block's own layout, and a new size that is not zero.
            unsafe {
                self.start = self.allocator.realloc(self.start, layout(self.size), size);
                self.size = self.size.min(size);
                assert!(self.bytes().iter().all(|&byte| byte == self.content));
                self.size = size;
                self.start.write_bytes(self.content, size);
            }
        }
    }

    impl Drop for Block<'_> {
        fn drop(&mut self) {
            assert!(self.bytes().iter().all(|&byte| byte == self.content), "somebody wrote into a block");
            // SAFETY: the block's own layout.
            unsafe { self.allocator.dealloc(self.start, layout(self.size)) };
        }
    }

    /// Allocates, resizes and frees at random, and leaves nothing.
    fn work(allocator: &Allocator, seed: u64) {
        let mut state = seed;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let mut blocks = Vec::new();
        for turn in 0..2_000 {
            let most = [200, 5_000, 100_000, 3_000_000][random(4)];
            let size = 1 + random(most);
            match random(4) {
                0 if !blocks.is_empty() => drop(blocks.swap_remove(random(blocks.len()))),
                1 if !blocks.is_empty() => {
                    let index = random(blocks.len());
                    let block: &mut Block<'_> = &mut blocks[index];
                    block.resize(size);
                }
                _ => blocks.push(Block::new(allocator, size, turn as u8, random(2) == 0)),
            }
            if blocks.len() > 40 {
                blocks.swap_remove(random(40));
            }
        }
    }

    #[test]
    fn blocks_keep_to_themselves_and_all_comes_back() {
        let allocator = Allocator::new();
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let allocator = &allocator;
                scope.spawn(move || work(allocator, seed));
            }
        });
        let space = allocator.space();
        let length = allocator.end.load(Ordering::Relaxed) - allocator.start.load(Ordering::Relaxed);
        assert_eq!(space.used.total() + space.fresh.total(), length);
        assert!(space.used.total() <= KEPT);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn freed_memory_is_made_use_of_and_much_of_it_given_back() {
        let allocator = Allocator::new();
        let block = Block::new(&allocator, 1 << 20, 1, false);
        let start = block.start;
        assert!(allocator.owns(start));
        drop(block);
        assert_eq!(Block::new(&allocator, (1 << 20) - 100, 2, true).start, start);
        // Zeros of many bytes come from where nobody has written.
        let zeros = Block::new(&allocator, LAZY, 3, true);
        assert_ne!(zeros.start, start);
        let large = Block::new(&allocator, KEPT + (3 << 20), 4, false);
        let is_kept = |allocator: &Allocator| allocator.space().used.total();
        assert_eq!(is_kept(&allocator), 1 << 20);
        drop((zeros, large));
        assert!(is_kept(&allocator) < 4 << 20, "{}", is_kept(&allocator));
        // What was given back reads as zeros.
        drop(Block::new(&allocator, KEPT, 5, true));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_block_grows_and_shrinks_where_it_is() {
        let allocator = Allocator::new();
        let mut block = Block::new(&allocator, 100_000, 1, false);
        let start = block.start;
        for size in [5_000_000, 70_000, 4_000_000] {
            block.resize(size);
            assert_eq!(block.start, start);
        }
        let next = Block::new(&allocator, 100_000, 2, false);
        block.resize(7_000_000);
        assert!(block.start != start && next.start != start);
        block.resize(1_000);
        assert!(!allocator.owns(block.start));
    }

    #[test]
    fn too_much_is_refused() {
        let allocator = Allocator::new();
        // SAFETY: the size is not zero; nothing is used.
        assert!(unsafe { allocator.alloc(layout(1 << 60)) }.is_null());
    }
}
