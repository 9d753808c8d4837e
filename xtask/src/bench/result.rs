//! `result.json`: everything that one run found, in one file that later versions can still read.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::{
    detector::Verdict,
    environment::Environment,
    peers::Peers,
    published::{Claim, Published},
    roofline::{Bound, Limits},
    statistics::{Interval, median, median_interval, spread},
};

/// Raised when a field changes its meaning.
pub(crate) const SCHEMA: u32 = 1;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct RunResult {
    pub(crate) schema: u32,
    /// RFC 3339, UTC.
    pub(crate) started: String,
    pub(crate) finished: String,
    pub(crate) device: String,
    /// Processes of each group.
    pub(crate) repeat: usize,
    /// Shorter batches than usual.
    pub(crate) quick: bool,
    pub(crate) realtime: bool,
    pub(crate) environment: Environment,
    pub(crate) load_before: Option<f64>,
    pub(crate) load_after: Option<f64>,
    pub(crate) limits: Option<Limits>,
    pub(crate) rows: Vec<Row>,
    pub(crate) comparison: Option<Comparison>,
    #[serde(default)]
    pub(crate) claims: Vec<CheckedClaim>,
    pub(crate) peers: Option<Peers>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) row: String,
    /// The bench program that has it.
    pub(crate) program: String,
    /// The median of the processes' medians, nanoseconds per iteration.
    pub(crate) median_ns: f64,
    /// Its 95 % bootstrap interval over processes.
    pub(crate) interval_ns: [f64; 2],
    /// Between processes: 1.4826 × median absolute deviation ÷ median.
    pub(crate) spread: f64,
    /// The median of each process.
    pub(crate) processes_ns: Vec<f64>,
    /// Nanoseconds per iteration of every batch, by process.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) samples_ns: Vec<Vec<f64>>,
    pub(crate) counters: Option<Counters>,
    pub(crate) published: Option<Published>,
    /// The time that the machine's limit allows ÷ the time taken.
    pub(crate) share_of_limit: Option<f64>,
    pub(crate) bound: Option<Bound>,
}

impl Row {
    pub(crate) fn new(row: &str, program: &str, samples: Vec<Vec<f64>>) -> Self {
        let processes: Vec<f64> = samples.iter().map(|batches| median(batches)).collect();
        let interval = median_interval(&processes, row);
        Self {
            row: row.to_owned(),
            program: program.to_owned(),
            median_ns: interval.estimate,
            interval_ns: [interval.low, interval.high],
            spread: spread(&processes),
            processes_ns: processes,
            samples_ns: samples,
            counters: None,
            published: None,
            share_of_limit: None,
            bound: None,
        }
    }

    pub(crate) fn group(&self) -> &str {
        group(&self.row)
    }

    /// How often faster than the published figure, from another machine.
    pub(crate) fn times_published(&self) -> Option<f64> {
        Some(self.published.as_ref()?.nanoseconds / self.median_ns)
    }

    /// The least nanoseconds that the machine allows for the row, if the published figure is below them.
    pub(crate) fn limit_above_published(&self) -> Option<f64> {
        let least = self.share_of_limit? * self.median_ns;
        (self.published.as_ref()?.nanoseconds < least).then_some(least)
    }
}

/// `group` of `group/name`.
pub(crate) fn group(row: &str) -> &str {
    row.split('/').next().unwrap_or(row)
}

/// What one iteration of a row moves, computes and asks for; the bench programs write it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Counters {
    pub(crate) row: String,
    /// What the operation must move and compute at least.
    pub(crate) bytes: Option<f64>,
    /// In how many bytes of memory these lie, where places are touched twice.
    pub(crate) working_set: Option<f64>,
    /// Whether one thread copies them, from a cache.
    pub(crate) copies: bool,
    /// Locks of tensors, taken and given back.
    pub(crate) locks: Option<f64>,
    pub(crate) flops: Option<f64>,
    pub(crate) allocations: Option<f64>,
    pub(crate) allocated_bytes: Option<f64>,
    /// On the heap, of this iteration.
    pub(crate) peak_bytes: Option<f64>,
    /// Of the whole process, and of the device.
    pub(crate) resident_bytes: Option<f64>,
    pub(crate) device_peak_bytes: Option<f64>,
    pub(crate) launches: Option<f64>,
    /// Tokens, for example.
    pub(crate) units: BTreeMap<String, f64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Comparison {
    pub(crate) baseline: String,
    pub(crate) baseline_commit: Option<String>,
    pub(crate) baseline_started: String,
    pub(crate) method: Method,
    pub(crate) tolerance: f64,
    pub(crate) rows: Vec<ComparedRow>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Method {
    /// Old and new program ran in turns.
    Interleaved,
    /// New processes beside the figures of another day: the machine's mood is part of the ratio.
    Recorded,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ComparedRow {
    pub(crate) row: String,
    /// New ÷ old with its 95 % interval; of the confirmation where there was one.
    pub(crate) ratio: Interval,
    pub(crate) screening: Interval,
    pub(crate) suspect: bool,
    /// Pairs of the confirmation.
    pub(crate) pairs: usize,
    pub(crate) verdict: Verdict,
}

/// A claim whose rows were measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct CheckedClaim {
    pub(crate) claim: Claim,
    /// Row ÷ over with its 95 % interval; of the pairs that ran in turns where there were any.
    pub(crate) ratio: Interval,
    pub(crate) pairs: usize,
    /// A regression: shown not to hold.
    pub(crate) verdict: Verdict,
}

impl RunResult {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let value: serde_json::Value = crate::files::read_json(path)?;
        match value["schema"].as_u64() {
            Some(schema) if schema == u64::from(SCHEMA) => {}
            other => bail!(
                "{} has schema {other:?}, this program reads {SCHEMA}; measure again, or use the xtask of that commit",
                path.display()
            ),
        }
        Ok(serde_json::from_value(value)?)
    }

    pub(crate) fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.row == name)
    }

    pub(crate) fn regressions(&self) -> impl Iterator<Item = &ComparedRow> {
        let rows = self.comparison.iter().flat_map(|comparison| &comparison.rows);
        rows.filter(|row| row.verdict == Verdict::Regression)
    }

    /// Without the single batches: what is kept in the tree.
    pub(crate) fn reduced(&self) -> Self {
        let mut reduced = self.clone();
        reduced.rows.iter_mut().for_each(|row| row.samples_ns.clear());
        reduced
    }
}
