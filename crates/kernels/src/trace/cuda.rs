//! Times on an NVIDIA GPU, by events on its stream. They are read when many have come together, or at the end: nothing waits
//! for the GPU at each span.

use std::sync::Arc;

use candle_core::{
    CudaDevice,
    cuda_backend::cudarc::driver::{CudaEvent, CudaStream, DriverError, sys::CUevent_flags},
};

use super::DeviceTime;

/// Spans whose events are kept before they are read.
const MOST: usize = 4096;

/// A span that has begun on a stream.
pub(super) struct Began {
    stream: Arc<CudaStream>,
    event: CudaEvent,
}

/// The spans of a thread whose times are not read yet.
#[derive(Default)]
pub(super) struct Pending {
    /// An event whose time on the host's clock is known, in nanoseconds.
    base: Option<(CudaEvent, f64)>,
    spans: Vec<(usize, CudaEvent, CudaEvent)>,
}

impl Pending {
    /// `now` reads the host's clock. Without an event, which the driver refuses when something is wrong that the op itself
    /// will tell, there is no time.
    pub(super) fn begin(&mut self, device: &CudaDevice, now: impl Fn() -> u64) -> Option<Began> {
        let stream = device.cuda_stream();
        if self.base.is_none() {
            let event = event(&stream).ok()?;
            event.synchronize().ok()?;
            self.base = Some((event, now() as f64));
        }
        let event = event(&stream).ok()?;
        Some(Began { stream, event })
    }

    /// Says whether it is time to read.
    pub(super) fn end(&mut self, began: Began, place: usize) -> bool {
        if let Ok(end) = event(&began.stream) {
            self.spans.push((place, began.event, end));
        }
        self.spans.len() >= MOST
    }

    /// The times of all that have ended. Waits for the last one.
    pub(super) fn times(&mut self) -> Vec<(usize, DeviceTime)> {
        let Some((base, at)) = &self.base else { return Vec::new() };
        let nanoseconds = |from: &CudaEvent, to: &CudaEvent| Some(1e6 * f64::from(from.elapsed_ms(to).ok()?));
        let time = |(place, first, last): &(usize, CudaEvent, CudaEvent)| {
            let (start, duration) = (at + nanoseconds(base, first)?, nanoseconds(first, last)?);
            Some((*place, DeviceTime { start_ns: start.max(0.0) as u64, duration_ns: duration as u64 }))
        };
        let times = self.spans.iter().filter_map(time).collect();
        // A later base: the driver counts in f32, which far from it are no longer fine enough.
        let last = self.spans.drain(..).next_back().map(|(_, _, last)| last);
        if let Some(last) = last
            && let Some(later) = nanoseconds(base, &last)
        {
            self.base = Some((last, at + later));
        }
        times
    }
}

fn event(stream: &CudaStream) -> Result<CudaEvent, DriverError> {
    stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))
}
