//! Large memory: tensors and vectors on huge pages, and files mapped into memory.
//!
//! Everything here is about resident memory and page faults, and all of it has a safe interface.

mod allocator;
mod ranges;

use std::alloc::{Layout, alloc_zeroed};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::time::Instant;

use half::{bf16, f16};

pub use allocator::Allocator;

use crate::pool;

#[cfg(target_endian = "big")]
compile_error!(
    "weight files are little-endian and are copied as they are: big-endian machines are not supported"
);

/// Number types without padding for which every bit pattern, all zeros included, is a value.
pub trait Plain: sealed::Sealed + Copy + Send + Sync + 'static {}

mod sealed {
    pub trait Sealed {}
}

macro_rules! plain {
    ($($number:ty),*) => { $(impl sealed::Sealed for $number {} impl Plain for $number {})* };
}
plain!(u8, u16, u32, u64, i64, f16, bf16, f32);

/// A vector of `len` zeros, meant for gigabytes.
///
/// On Linux the system is asked to back it with huge pages before anything touches it: reading weights
/// then misses the TLB 512 times less often. Pages become resident when they are first written, so an
/// unused tail costs nothing. Running out of address space is an error, not an abort.
pub fn huge_vec<T: Plain>(len: usize) -> io::Result<Vec<T>> {
    let layout = Layout::array::<T>(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    if layout.size() == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the layout has a non-zero size.
    let start = unsafe { alloc_zeroed(layout) };
    if start.is_null() {
        let message = format!("the system did not give {} bytes of memory", layout.size());
        return Err(io::Error::new(io::ErrorKind::OutOfMemory, message));
    }
    advise_huge_pages(start, layout.size());
    // SAFETY: `start` comes from the global allocator with the layout of `len` values of `T`, and its
    // zeros are `len` valid values because `T` is `Plain`.
    Ok(unsafe { Vec::from_raw_parts(start.cast::<T>(), len, len) })
}

/// The memory of `values` as bytes, in the machine's (little-endian) order.
pub fn bytes_of_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    let bytes = size_of_val(values);
    // SAFETY: the bytes are exactly those of `values`, borrowed as long as they are; `u8` has no
    // alignment, and every bit pattern that is written is a `T` because `T` is `Plain`.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<u8>(), bytes) }
}

/// The most memory that this process has held resident so far, in bytes; `None` where the system does not tell.
pub fn peak_resident_bytes() -> Option<u64> {
    #[cfg(unix)]
    {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: `usage` has room for one `rusage`, all of whose bit patterns are values.
        let usage = unsafe {
            if libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) != 0 {
                return None;
            }
            usage.assume_init()
        };
        let peak = u64::try_from(usage.ru_maxrss).ok()?;
        // Apple counts bytes, the others KiB.
        Some(if cfg!(target_vendor = "apple") { peak } else { peak * 1024 })
    }
    #[cfg(not(unix))]
    None
}

/// The memory that this process holds resident now, in bytes; `None` where the system does not tell.
pub fn resident_bytes() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let numbers = std::fs::read_to_string("/proc/self/statm").ok()?;
        let pages: u64 = numbers.split(' ').nth(1)?.parse().ok()?;
        // SAFETY: sysconf only reads numbers.
        pages.checked_mul(u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?)
    }
    #[cfg(target_vendor = "apple")]
    {
        let mut info = std::mem::MaybeUninit::<libc::proc_taskinfo>::zeroed();
        let size = i32::try_from(size_of::<libc::proc_taskinfo>()).ok()?;
        // SAFETY: `info` has room for one `proc_taskinfo`, all of whose bit patterns are values.
        unsafe {
            let own = libc::getpid();
            let written = libc::proc_pidinfo(own, libc::PROC_PIDTASKINFO, 0, info.as_mut_ptr().cast(), size);
            (written == size).then(|| info.assume_init().pti_resident_size)
        }
    }
    #[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
    None
}

/// Measures how fast the pool's threads read from memory, by sweeps over a buffer on huge pages.
#[derive(Debug)]
pub struct BandwidthProbe {
    words: Vec<u64>,
}

impl BandwidthProbe {
    /// 1 MiB of words.
    const PART: usize = 1 << 17;

    /// A probe over `bytes` of memory, which has to be much more than the caches hold.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let mut words = huge_vec::<u64>(bytes / size_of::<u64>())?;
        // Makes the pages resident.
        pool::for_each_part(&mut words, Self::PART, |part, words| words.fill(part as u64));
        Ok(Self { words })
    }

    /// Reads all of it once; returns bytes per second.
    pub fn sweep(&self) -> f64 {
        let words = &self.words;
        let start = Instant::now();
        pool::for_each(words.len().div_ceil(Self::PART), &|part| {
            let words = &words[part * Self::PART..words.len().min((part + 1) * Self::PART)];
            std::hint::black_box(words.iter().fold(0, |sum: u64, word| sum.wrapping_add(*word)));
        });
        size_of_val(words.as_slice()) as f64 / start.elapsed().as_secs_f64()
    }
}

/// The machine's memory in bytes; `None` where the system does not tell.
pub fn physical_bytes() -> Option<u64> {
    #[cfg(unix)]
    {
        // SAFETY: sysconf only reads numbers.
        let (pages, size) =
            unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
        u64::try_from(pages).ok()?.checked_mul(u64::try_from(size).ok()?)
    }
    #[cfg(not(unix))]
    None
}

/// A file mapped read-only into memory.
///
/// **The file must not change while it is mapped.** The system does not protect us: if somebody
/// truncates it, the next access ends the process with SIGBUS; if somebody writes into it, bytes change
/// under a shared reference. We accept this because model files are written once, and keep the time
/// short: the loader copies what it needs and unmaps. Replacing a file by renaming another over
/// it, as package managers and the hub cache do, is harmless: the mapping keeps the old file.
#[derive(Debug)]
pub struct FileMap {
    map: memmap2::Mmap,
}

impl FileMap {
    /// Maps the whole of `file`.
    pub fn new(file: &File) -> io::Result<FileMap> {
        // SAFETY: the mapping is read-only. That nobody changes the file meanwhile is the condition
        // stated in the type's documentation; nothing in this process writes to mapped files.
        let map = unsafe { memmap2::Mmap::map(file)? };
        #[cfg(unix)]
        map.advise(memmap2::Advice::Sequential).ok(); // only a hint: a refusal costs speed, not correctness
        Ok(FileMap { map })
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Gives the pages of `range` back: they no longer count as resident, and reading them again is
    /// allowed and reads the file again.
    ///
    /// The range is widened to whole blocks of 64 KiB, because the kernel maps that much around a fault.
    /// It is clipped to the file. Does nothing where the system has no such call.
    pub fn release(&self, range: Range<usize>) {
        const BLOCK: usize = 64 << 10;
        let start = range.start / BLOCK * BLOCK;
        let end = range.end.next_multiple_of(BLOCK).min(self.map.len());
        if start >= end {
            return;
        }
        #[cfg(unix)]
        // SAFETY: MADV_DONTNEED on a shared read-only file mapping only drops page table entries; the
        // next read finds the same bytes in the file.
        unsafe {
            // A refusal costs memory, not correctness.
            self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start).ok();
        }
    }
}

/// Asks for huge pages in the whole pages of `start..start + bytes`; a refusal only costs speed.
#[cfg(target_os = "linux")]
fn advise_huge_pages(start: *mut u8, bytes: usize) {
    const HUGE_PAGE: usize = 2 << 20;
    // SAFETY: sysconf only reads a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let Ok(page) = usize::try_from(page) else { return };
    let skipped = start.align_offset(page);
    if bytes < HUGE_PAGE || skipped >= bytes {
        return;
    }
    let advised = (bytes - skipped) / page * page;
    // SAFETY: the range lies inside an allocation that we own, and MADV_HUGEPAGE never changes contents.
    unsafe { libc::madvise(start.add(skipped).cast(), advised, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_start: *mut u8, _bytes: usize) {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use super::*;

    #[test]
    fn a_huge_vec_is_zero_and_behaves_like_any_vec() {
        for len in [0, 1, 5_000_000] {
            let mut values = huge_vec::<bf16>(len).unwrap();
            assert_eq!(values.len(), len);
            assert!(values.iter().all(|value| value.to_bits() == 0));
            values.push(bf16::ONE); // reallocates with the layout that we claimed
            assert_eq!(values.last(), Some(&bf16::ONE));
        }
    }

    #[test]
    fn too_much_memory_is_an_error() {
        assert_eq!(huge_vec::<f32>(usize::MAX).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        assert_eq!(huge_vec::<u8>(1 << 62).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
    }

    #[test]
    #[cfg(unix)]
    fn the_peak_grows_with_what_is_touched_and_fits_the_machine() {
        let before = peak_resident_bytes().unwrap();
        let touched = vec![1u8; 64 << 20];
        let after = peak_resident_bytes().unwrap();
        assert!(after >= 64 << 20 && after >= before, "{before} {after}");
        assert!(physical_bytes().unwrap() >= after);
        assert_eq!(touched[touched.len() - 1], 1);
    }

    #[test]
    fn a_bandwidth_is_a_positive_number() {
        let bandwidth = BandwidthProbe::new(5 << 20).unwrap().sweep();
        assert!(bandwidth.is_finite() && bandwidth > 0.0, "{bandwidth}");
    }

    #[test]
    fn bytes_of_values_are_little_endian() {
        let mut values = [0f32; 2];
        bytes_of_mut(&mut values)[4..].copy_from_slice(&1.5f32.to_le_bytes());
        assert_eq!(values, [0.0, 1.5]);
    }

    #[test]
    fn released_pages_read_the_same_again() {
        let path = std::env::temp_dir().join(format!("metal-candle-map-{}", std::process::id()));
        let contents: Vec<u8> = (0..300_000u32).map(|index| (index % 251) as u8).collect();
        File::create(&path).unwrap().write_all(&contents).unwrap();
        let map = FileMap::new(&File::open(&path).unwrap()).unwrap();
        assert_eq!(map.bytes(), contents);
        for range in [0..contents.len(), 70_000..70_001, 299_999..900_000, 5..5] {
            map.release(range);
            assert_eq!(map.bytes(), contents);
        }
        std::fs::remove_file(path).unwrap();
    }
}
