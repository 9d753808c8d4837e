//! What a row costs besides time, as JSON lines: one iteration, counted after the row was timed.

use std::{
    env, fs,
    fs::OpenOptions,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use metal_candle::device;
use metal_candle_kernels::trace;
use serde_json::{Map, Value, json};

use crate::{Bench, Call, Row, counting};

/// The file that gets the lines, if one was named.
pub fn file_from_environment() -> Option<PathBuf> {
    env::var_os("METAL_CANDLE_BENCH_COUNTERS").map(PathBuf::from)
}

/// Runs a call that has run before once more, counts, and appends a line to `file`.
pub fn append(file: &Path, row: &Row, call: &mut Call, bench: &Bench) -> Result<()> {
    let line = count(row, call, bench)?;
    let mut file = OpenOptions::new().create(true).append(true).open(file).with_context(|| {
        format!(
            "METAL_CANDLE_BENCH_COUNTERS: cannot write {}; name a file in a folder that exists",
            file.display()
        )
    })?;
    Ok(writeln!(file, "{line}")?)
}

fn count(row: &Row, call: &mut Call, bench: &Bench) -> Result<Value> {
    call.prepare()?;
    let is_reset = reset_peak_resident();
    let launches_before = trace::launches();
    let (allocated, ran) = counting::count(|| call.run().and_then(|()| bench.synchronize()));
    ran?;
    let launches = trace::launches() - launches_before;
    let resident = if is_reset { peak_resident() } else { None };
    let units: Map<String, Value> =
        row.work.units.iter().map(|&(unit, count)| (unit.to_owned(), count.into())).collect();
    Ok(json!({
        "row": row.id,
        "bytes": row.work.bytes,
        "working_set": row.work.working_set,
        "copies": row.work.copies,
        "locks": row.work.locks,
        "flops": row.work.flops,
        "allocations": allocated.allocations,
        "allocated_bytes": allocated.bytes,
        "peak_bytes": allocated.peak,
        "resident_bytes": resident,
        "device_peak_bytes": device::memory(bench.device())?.map(|memory| memory.peak),
        "launches": launches,
        "units": units,
    }))
}

/// Makes the system forget the most that this process has had in memory; whether it did (Linux).
fn reset_peak_resident() -> bool {
    cfg!(target_os = "linux") && fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// The most that this process has had in memory since then, weights and what earlier rows left included.
fn peak_resident() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}
