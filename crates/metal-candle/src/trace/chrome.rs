//! A recording as Chrome's trace events, which <https://ui.perfetto.dev> and chrome://tracing show:
//! <https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU>.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use super::{Recording, Sample, SpanRecord, per_nanosecond, time_ns};
use crate::durable;

/// Where threads are.
const HOST: u32 = 1;
/// Where the work of these threads on an accelerator is.
const ACCELERATOR: u32 = 2;

/// The trace cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the trace {path}: {source}; name a file in a folder that exists and can be written")]
pub struct TraceError {
    /// The file.
    path: PathBuf,
    /// What the system said.
    source: io::Error,
}

/// Writes a recording to a file, which is there whole or not at all.
pub fn save_chrome(recording: &Recording, path: &Path) -> Result<(), TraceError> {
    durable::write_file(path, |file| write(recording, file))
        .map_err(|source| TraceError { path: path.to_owned(), source })
}

fn write(recording: &Recording, to: &mut impl Write) -> io::Result<()> {
    let about = json!({
        "metal-candle": env!("CARGO_PKG_VERSION"),
        "launches": recording.launches,
        "dropped": recording.dropped,
    });
    write!(to, "{{\"displayTimeUnit\":\"ms\",\"otherData\":{about},\"traceEvents\":[")?;
    let named = json!({ "ph": "M", "pid": HOST, "name": "process_name", "args": { "name": "metal-candle" } });
    write!(to, "\n{named}")?;
    let mut event = |event: Value| write!(to, ",\n{event}");
    if recording.threads.iter().flat_map(|thread| &thread.spans).any(has_time_of_its_own) {
        event(
            json!({ "ph": "M", "pid": ACCELERATOR, "name": "process_name", "args": { "name": "accelerator" } }),
        )?;
    }
    for (number, thread) in recording.threads.iter().enumerate() {
        for pid in [HOST, ACCELERATOR] {
            if pid == HOST || thread.spans.iter().any(has_time_of_its_own) {
                let name = json!({ "name": thread.name });
                event(json!({ "ph": "M", "pid": pid, "tid": number, "name": "thread_name", "args": name }))?;
            }
        }
        for span in &thread.spans {
            event(complete(span, HOST, number, (span.start_ns, span.duration_ns)))?;
            if let Some(device) = span.device.filter(|_| has_time_of_its_own(span)) {
                event(complete(span, ACCELERATOR, number, (device.start_ns, device.duration_ns)))?;
            }
        }
    }
    for sample in &recording.samples {
        for (name, numbers) in counters(sample) {
            let at = microseconds(sample.at_ns);
            event(json!({ "ph": "C", "pid": HOST, "name": name, "ts": at, "args": numbers }))?;
        }
    }
    write!(to, "\n]}}\n")
}

/// Whether the accelerator did it at another time than the host.
fn has_time_of_its_own(span: &SpanRecord) -> bool {
    span.device
        .is_some_and(|device| (device.start_ns, device.duration_ns) != (span.start_ns, span.duration_ns))
}

fn complete(span: &SpanRecord, pid: u32, tid: usize, (start, duration): (u64, u64)) -> Value {
    let mut about = Map::new();
    if let Some(index) = span.index {
        about.insert("index".to_owned(), index.into());
    }
    if let Some(work) = span.work {
        about.insert("bytes".to_owned(), work.bytes.into());
        about.insert("flops".to_owned(), work.flops.into());
        for (name, count) in [("GB/s", work.bytes), ("GFLOP/s", work.flops)] {
            if let Some(rate) = per_nanosecond(count, time_ns(span)) {
                about.insert(name.to_owned(), rate.into());
            }
        }
    }
    about.insert("launches".to_owned(), span.launches.into());
    let category = if span.work.is_some() { "op" } else { "part" };
    json!({
        "ph": "X", "pid": pid, "tid": tid, "cat": category, "name": span.name,
        "ts": microseconds(start), "dur": microseconds(duration), "args": about,
    })
}

fn counters(sample: &Sample) -> Vec<(&'static str, Value)> {
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let mut counters = vec![("launches", json!({ "launches": sample.launches }))];
    if let Some(bytes) = sample.resident_bytes {
        counters.push(("resident memory", json!({ "MB": megabytes(bytes) })));
    }
    if let Some(bytes) = sample.device_bytes {
        counters.push(("accelerator memory", json!({ "MB": megabytes(bytes) })));
    }
    counters
}

fn microseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e3
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::trace::{DeviceTime, ThreadRecord, Work};

    fn recording() -> Recording {
        let span = SpanRecord {
            name: "layer",
            index: Some(3),
            start_ns: 1_000,
            duration_ns: 9_000,
            depth: 0,
            work: None,
            launches: 2,
            device: None,
        };
        let op = SpanRecord {
            name: "linear",
            index: None,
            start_ns: 2_000,
            depth: 1,
            work: Some(Work { bytes: 4_000, flops: 8_000 }),
            device: Some(DeviceTime { start_ns: 5_500, duration_ns: 2_000 }),
            ..span.clone()
        };
        let samples =
            vec![Sample { at_ns: 1, launches: 0, resident_bytes: Some(5_000_000), device_bytes: None }];
        let threads = vec![ThreadRecord { name: "main \"thread\"".to_owned(), spans: vec![span, op] }];
        Recording { threads, samples, dropped: 1, duration_ns: 20_000, launches: 2 }
    }

    #[test]
    fn every_span_is_an_event_with_its_rates() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.json");
        save_chrome(&recording(), &path).unwrap();
        let trace: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(trace["otherData"]["dropped"], 1);
        let events = trace["traceEvents"].as_array().unwrap();
        let complete: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
        let [layer, op, on_device] = complete.as_slice() else { panic!("{complete:#?}") };
        assert_eq!(
            (&layer["args"]["index"], &layer["ts"], &layer["dur"]),
            (&json!(3), &json!(1.0), &json!(9.0))
        );
        assert_eq!(op["args"]["GB/s"], 2.0, "by the accelerator's time");
        assert_eq!(op["args"]["GFLOP/s"], 4.0);
        assert_eq!((&on_device["pid"], &on_device["ts"]), (&json!(ACCELERATOR), &json!(5.5)));
        let named =
            |event: &&Value| event["name"] == "thread_name" && event["args"]["name"] == "main \"thread\"";
        assert_eq!(events.iter().filter(named).count(), 2);
        let counted: Vec<_> =
            events.iter().filter(|event| event["ph"] == "C").map(|event| &event["name"]).collect();
        assert_eq!(counted, ["launches", "resident memory"]);
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error =
            save_chrome(&recording(), &folder.path().join("none/trace.json")).unwrap_err().to_string();
        assert!(error.contains("none/trace.json") && error.contains("folder that exists"), "{error}");
    }
}
