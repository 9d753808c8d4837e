//! What runs, when, and how much of it: a recording of spans, as a file for a trace viewer and as a table of what cost most.
//!
//! ```
//! use metal_candle::trace;
//!
//! trace::start(trace::Settings::default())?;
//! {
//!     let _span = trace::host_span("my own work");
//! }
//! let recording = trace::finish().expect("started above");
//! println!("{}", trace::Table::of(&recording));
//! # let folder = std::env::temp_dir();
//! trace::save_chrome(&recording, &folder.join("trace.json"))?;
//! # std::fs::remove_file(folder.join("trace.json"))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod chrome;
mod table;

pub use metal_candle_kernels::trace::{
    DeviceTime, NoMarks, Plant, Recording, RecordingRuns, Sample, Settings, Span, SpanRecord, ThreadRecord,
    Work, finish, host_span, launched, launches, mark, sample, span, start,
};

pub use self::{
    chrome::{TraceError, save_chrome},
    table::{Cost, Table},
};

/// The time that counts for a span: its device's, where that was measured.
fn time_ns(span: &SpanRecord) -> u64 {
    span.device.map_or(span.duration_ns, |device| device.duration_ns)
}

/// So many things in so many nanoseconds, in thousands of millions per second; none where no time passed.
fn per_nanosecond(count: u64, nanoseconds: u64) -> Option<f64> {
    (count > 0 && nanoseconds > 0).then(|| count as f64 / nanoseconds as f64)
}
