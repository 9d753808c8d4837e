//! What runs, when, and how much of it: counted launches, and spans that cost one load where nobody records.
//!
//! Every op opens a span with what it must at least move and compute. While a recording runs, spans lie in memory, up to
//! a number that is set when it starts; [`finish`] hands them over.
//!
//! # Times
//! A span has the host's time. An op has its device's time, too: on the CPU that is the same; on CUDA it is the time
//! between two events around the op on its stream, and the host does not wait for it; on Metal the host waits for the
//! device before and after each span, so that a recorded run on Metal takes longer than another and its host times
//! include the wait.

#[cfg(feature = "cuda")]
mod cuda;
mod marks;
mod recording;
pub(crate) mod work;

use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::Device;

use crate::device::runs_kernels;

pub use marks::{NoMarks, mark};
pub use recording::{
    DeviceTime, Plant, Recording, RecordingRuns, Sample, Settings, SpanRecord, ThreadRecord, finish, sample,
    start,
};
pub use work::Work;

use recording::Open;

/// Kernels started so far, by the whole process.
///
/// On a GPU: launches of our own kernels, products of the device's library, and those of candle's ops that are part of
/// decoding and of training. Not counted are copies between host and device, memory that is set to zero, and what candle
/// starts to convert or rearrange a tensor that does not suit a kernel. On the CPU: calls of ops.
pub fn launches() -> u64 {
    LAUNCHES.load(Ordering::Relaxed)
}

/// Counts launches that are not made by a kernel of ours: a call of `count` of candle's ops.
#[inline]
pub fn launched(count: u64) {
    LAUNCHES.fetch_add(count, Ordering::Relaxed);
}

/// Where a piece of work begins; it ends where this is dropped, on the same thread.
#[must_use = "a span ends where it is dropped"]
pub struct Span {
    open: Option<Box<Open>>,
}

/// A span of one of our ops on a device. `work` is asked for only while a recording runs.
#[inline]
pub(crate) fn op(name: &'static str, device: &Device, work: impl FnOnce() -> Work) -> Span {
    if !runs_kernels(device) {
        launched(1);
    }
    match STATE.load(Ordering::Relaxed) {
        0 => Span { open: None },
        state => Span { open: recording::open(state, name, Some(device), Some(work())) },
    }
}

/// A span of a part of a program that computes on a device: a layer, a step. Its device time is measured as an op's is.
#[inline]
pub fn span(name: &'static str, device: &Device) -> Span {
    match STATE.load(Ordering::Relaxed) {
        0 => Span { open: None },
        state => Span { open: recording::open(state, name, Some(device), None) },
    }
}

/// A span of what only the host does.
#[inline]
pub fn host_span(name: &'static str) -> Span {
    match STATE.load(Ordering::Relaxed) {
        0 => Span { open: None },
        state => Span { open: recording::open(state, name, None, None) },
    }
}

impl Span {
    /// Says which of several it is: the number of a layer, or of a step.
    #[inline]
    pub fn at(self, index: usize) -> Self {
        if let Some(open) = &self.open {
            open.set_index(index);
        }
        self
    }
}

impl Drop for Span {
    #[inline]
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            open.close();
        }
    }
}

static LAUNCHES: AtomicU64 = AtomicU64::new(0);

/// 0: nobody wants to know of spans. Otherwise the lowest bit says that a profiler is told of them, and the others are
/// the number of the recording.
static STATE: AtomicU64 = AtomicU64::new(0);

/// The bit of [`STATE`] for profilers.
const MARKS: u64 = 1;
/// The first recording, in [`STATE`].
const RECORDING: u64 = 2;
