//! What a user sees of a run afterwards: its events in a file, TensorBoard's files, a page and a picture.
//!
//! [`MetricsFile`] and [`TensorBoard`] observe the run; [`write()`] turns the metrics file into `report.html` and `loss.png`,
//! at its end or at any time.

mod chart;
mod checksum;
mod history;
mod metrics;
mod page;
mod picture;
mod plot;
mod series;
mod strokes;
mod tensorboard;

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use crate::durable;

pub use history::History;
pub use metrics::{METRICS_FILE, MetricsFile};
pub use series::{bucket_means, smooth};
pub use tensorboard::TensorBoard;

/// The page in a run's folder.
pub const PAGE_FILE: &str = "report.html";
/// The picture of the loss in a run's folder.
pub const PICTURE_FILE: &str = "loss.png";

/// A file of a run's folder cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// Reading failed.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Writing failed.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line in the middle of the metrics is no event.
    #[error("{}, line {line} is no event of a training run ({reason}); remove the line", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
}

/// A command that the page offers to its reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextCommand {
    /// What it does, in a few words.
    pub purpose: String,
    /// What to type.
    pub command: String,
}

/// Where the report was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The page.
    pub page: PathBuf,
    /// The picture of the loss.
    pub picture: PathBuf,
}

/// Writes the page and the picture of the run whose metrics are in `folder`. Each file is replaced at once or not at all.
pub fn write(folder: &Path, next: &[NextCommand]) -> Result<Written, ReportError> {
    write_history(&History::read(&folder.join(METRICS_FILE))?, folder, next)
}

/// Writes the page and the picture of a run that is known already; see [`write()`].
pub fn write_history(history: &History, folder: &Path, next: &[NextCommand]) -> Result<Written, ReportError> {
    let written = Written { page: folder.join(PAGE_FILE), picture: folder.join(PICTURE_FILE) };
    replace(&written.page, page::render(history, next).as_bytes())?;
    replace(&written.picture, &picture::render(history))?;
    Ok(written)
}

/// Puts a whole file in the place of another.
fn replace(path: &Path, content: &[u8]) -> Result<(), ReportError> {
    let written = durable::write_file(path, |file| file.write_all(content));
    written.map_err(|source| ReportError::Write { path: path.to_owned(), source })
}
