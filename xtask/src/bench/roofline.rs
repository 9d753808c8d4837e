//! How near a row comes to what this machine can do. The program `roofline` of the benches measures the limits.
//!
//! Memory has no single speed: what fits into a cache is read faster. The probe reads working sets from 32 KiB to half
//! a GiB, and a row is held against the speed at the size of what it moves. A row that only copies, too little for more than
//! one thread, is held against one thread's copies into a working set of that size, and against the locks of the tensors
//! that it reads and writes, where these take longer.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{
    process::Setup,
    result::{Counters, Row},
    units,
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Limits {
    pub(crate) device: String,
    pub(crate) threads: usize,
    /// By working set, the smallest first.
    pub(crate) memory: Vec<Bandwidth>,
    /// The same for what one thread copies into a working set: bytes read and written. Empty where that was not measured.
    #[serde(default)]
    pub(crate) copies: Vec<Bandwidth>,
    /// Of a product of large f32 matrices.
    pub(crate) flops_per_second: f64,
    /// The same with a model's weights: bf16, and on a GPU activations of bf16 too.
    pub(crate) model_flops_per_second: f64,
    /// To take and give back a tensor's lock that nobody else wants; `None` where that was not measured.
    #[serde(default)]
    pub(crate) seconds_per_lock: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Bandwidth {
    pub(crate) bytes: f64,
    pub(crate) bytes_per_second: f64,
}

/// What holds a row back at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    Memory,
    Compute,
    Locks,
}

impl Bound {
    /// As the machine's part that is the limit.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Compute => "arithmetic",
            Self::Locks => "locks",
        }
    }

    /// What a row does that takes this time.
    pub(crate) fn work(self) -> &'static str {
        match self {
            Self::Memory => "what the row moves",
            Self::Compute => "what the row computes",
            Self::Locks => "the locks of the tensors that the row reads and writes",
        }
    }
}

/// Runs the probe.
pub(crate) fn measure(program: &Path, setup: &Setup) -> Result<Limits> {
    let output = setup
        .command(program)
        .env("METAL_CANDLE_BENCH_DEVICE", &setup.device)
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(
        output.status.success(),
        "{} failed: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let limits: Limits = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{} printed something else than limits", program.display()))?;
    ensure!(!limits.memory.is_empty(), "{} measured no memory", program.display());
    Ok(limits)
}

impl Limits {
    /// The better of two probes: what is in the way of one is no limit of the machine.
    pub(crate) fn best(mut self, other: &Self) -> Self {
        let steps = self.memory.iter_mut().chain(&mut self.copies);
        for (ours, theirs) in steps.zip(other.memory.iter().chain(&other.copies)) {
            ours.bytes_per_second = ours.bytes_per_second.max(theirs.bytes_per_second);
        }
        self.flops_per_second = self.flops_per_second.max(other.flops_per_second);
        self.model_flops_per_second = self.model_flops_per_second.max(other.model_flops_per_second);
        let locks = [self.seconds_per_lock, other.seconds_per_lock];
        self.seconds_per_lock = locks.into_iter().flatten().reduce(f64::min);
        self
    }

    /// Of what no cache holds.
    pub(crate) fn main_memory(&self) -> f64 {
        self.memory.last().map_or(f64::NAN, |step| step.bytes_per_second)
    }

    /// How fast matrices are multiplied, in words.
    pub(crate) fn arithmetic(&self) -> String {
        let [f32, model] =
            [self.flops_per_second, self.model_flops_per_second].map(|it| units::rate(it, "FLOP"));
        format!("{f32} in f32, {model} with a model's bf16")
    }

    /// The least seconds for this work, and why.
    fn least(&self, counters: &Counters, flops_per_second: f64) -> Option<(f64, Bound)> {
        let steps = if counters.copies && !self.copies.is_empty() { &self.copies } else { &self.memory };
        let within = |bytes| counters.working_set.unwrap_or(bytes);
        let memory = counters.bytes.map(|bytes| bytes / bandwidth(steps, within(bytes)));
        let compute = counters.flops.map(|flops| flops / flops_per_second);
        let locks = counters.locks.and_then(|locks| Some(locks * self.seconds_per_lock?));
        [(memory, Bound::Memory), (compute, Bound::Compute), (locks, Bound::Locks)]
            .into_iter()
            .filter_map(|(seconds, bound)| Some((seconds.filter(|seconds| *seconds > 0.0)?, bound)))
            .max_by(|a, b| a.0.total_cmp(&b.0))
    }

    /// Fills in a row's share of its limit.
    pub(crate) fn apply(&self, row: &mut Row) {
        // The program of whole models and their parts has weights of theirs.
        let flops = if row.program == "model" { self.model_flops_per_second } else { self.flops_per_second };
        let Some((seconds, bound)) = row.counters.as_ref().and_then(|counters| self.least(counters, flops))
        else {
            return;
        };
        row.share_of_limit = Some(seconds * 1e9 / row.median_ns);
        row.bound = Some(bound);
    }
}

/// Bytes per second for a working set, interpolated between the sizes that were measured.
fn bandwidth(steps: &[Bandwidth], working_set: f64) -> f64 {
    match steps.iter().position(|step| step.bytes >= working_set) {
        Some(0) => steps[0].bytes_per_second,
        None => steps.last().map_or(f64::NAN, |step| step.bytes_per_second),
        Some(index) => {
            let (small, large) = (steps[index - 1], steps[index]);
            let part = (working_set / small.bytes).ln() / (large.bytes / small.bytes).ln();
            small.bytes_per_second + part * (large.bytes_per_second - small.bytes_per_second)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        let memory = [(1e3, 100e9), (1e6, 50e9), (1e9, 10e9)]
            .map(|(bytes, bytes_per_second)| Bandwidth { bytes, bytes_per_second })
            .to_vec();
        Limits {
            device: "cpu".into(),
            threads: 2,
            memory,
            copies: vec![Bandwidth { bytes: 1e3, bytes_per_second: 25e9 }],
            flops_per_second: 1e12,
            model_flops_per_second: 4e12,
            seconds_per_lock: Some(5e-9),
        }
    }

    fn row(bytes: Option<f64>, flops: Option<f64>, nanoseconds: f64) -> Row {
        let mut row = Row::new("a/b", "micro", vec![vec![nanoseconds]]);
        row.counters = Some(Counters { bytes, flops, ..Counters::default() });
        limits().apply(&mut row);
        row
    }

    #[test]
    fn a_working_set_is_held_against_the_cache_it_fits_into() {
        assert_eq!(bandwidth(&limits().memory, 10.0), 100e9);
        assert_eq!(bandwidth(&limits().memory, 1e6), 50e9);
        assert!((bandwidth(&limits().memory, 1e9f64.sqrt() * 1e3f64.sqrt()) - 50e9).abs() < 1.0);
        assert!((bandwidth(&limits().memory, 1e6 * 1e3f64.sqrt()) - 30e9).abs() < 1.0);
        assert_eq!(bandwidth(&limits().memory, 1e12), 10e9);
    }

    #[test]
    fn the_tighter_limit_counts() {
        // 1 MB at 50 GB/s: 20 µs; 1 MFLOP at 1 TFLOP/s: 1 µs.
        let memory = row(Some(1e6), Some(1e6), 40e3);
        assert_eq!((memory.bound, memory.share_of_limit), (Some(Bound::Memory), Some(0.5)));
        let compute = row(Some(1e6), Some(1e9), 2e6);
        assert_eq!((compute.bound, compute.share_of_limit), (Some(Bound::Compute), Some(0.5)));
        assert_eq!(row(None, None, 1.0).share_of_limit, None);
        let mut twice = row(Some(1e6), None, 40e3);
        twice.counters.as_mut().unwrap().working_set = Some(1e3);
        limits().apply(&mut twice);
        assert_eq!(twice.share_of_limit, Some(0.25));
        let mut copied = twice.clone();
        copied.counters.as_mut().unwrap().copies = true;
        limits().apply(&mut copied);
        assert_eq!((copied.bound, copied.share_of_limit), (Some(Bound::Memory), Some(1.0)));
        // 4 locks at 5 ns each: 20 ns, where 200 bytes at 25 GB/s take 8.
        let mut locked = copied.clone();
        locked.median_ns = 40.0;
        let counters = locked.counters.as_mut().unwrap();
        (counters.bytes, counters.locks) = (Some(200.0), Some(4.0));
        limits().apply(&mut locked);
        assert_eq!((locked.bound, locked.share_of_limit), (Some(Bound::Locks), Some(0.5)));
        let unmeasured = Limits { seconds_per_lock: None, ..limits() };
        unmeasured.clone().apply(&mut locked);
        assert_eq!((locked.bound, locked.share_of_limit), (Some(Bound::Memory), Some(0.2)));
        assert_eq!(unmeasured.best(&limits()).seconds_per_lock, Some(5e-9));
        let mut of_a_model = Row { program: "model".into(), ..compute };
        limits().apply(&mut of_a_model);
        assert_eq!(of_a_model.share_of_limit, Some(0.125));
    }
}
