//! What an epoch holds, before it is trained on.

use super::{Loader, Tally};
use crate::Result;

/// What one epoch holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Survey {
    /// What was met.
    pub tally: Tally,
    /// Batches of the first epoch; packed, another epoch may take one more or less.
    pub batches: u64,
    /// Rows of all batches, padding included.
    pub rows: u64,
    /// Rows that are no padding.
    pub useful: u64,
    /// Rows that would fit into the batches' bins, or else all rows.
    pub room: u64,
    /// The rows of the largest batch.
    pub most_rows: usize,
    /// The targets of the batch that has most.
    pub most_targets: usize,
    /// The rows of the longest sequence.
    pub longest: usize,
}

impl Survey {
    /// How much of the batches' room is used, up to 1.
    pub fn fill(&self) -> f64 {
        self.useful as f64 / self.room as f64
    }
}

/// Reads and tokenises the first epoch. `progress` is told the lines done and how many there are.
pub fn survey(loader: Loader, progress: &mut dyn FnMut(u64, u64)) -> Result<Survey> {
    let mut loader = loader.epochs(1);
    let lines = loader.file().len() as u64;
    let mut found = Survey {
        tally: Tally::default(),
        batches: 0,
        rows: 0,
        useful: 0,
        room: 0,
        most_rows: 0,
        most_targets: 0,
        longest: 0,
    };
    while let Some(batch) = loader.next() {
        let batch = batch?;
        found.batches += 1;
        found.rows += batch.rows() as u64;
        found.useful += batch.useful as u64;
        found.room += batch.room as u64;
        found.most_rows = found.most_rows.max(batch.rows());
        found.most_targets = found.most_targets.max(batch.counted);
        found.longest = found.longest.max(batch.longest());
        progress(loader.tally().examples + loader.tally().bad.count, lines);
    }
    found.tally = loader.tally().clone();
    progress(lines, lines);
    Ok(found)
}
