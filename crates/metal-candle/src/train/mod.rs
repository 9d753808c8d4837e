//! Training: batches to gradients, gradients to better parameters.

mod config;
pub mod data;
pub mod events;
mod forecast;
mod optimizer;
mod parameters;
pub mod report;
mod run;
mod schedule;
mod sums;
mod trainer;

pub use config::{
    AdapterFormat, DataConfig, EvaluationConfig, RecomputeChoice, RunLength, SampleConfig, TrainConfig,
    Training,
};
pub use forecast::{Forecast, Workload, time_left};
pub use optimizer::{Optimizer, OptimizerConfig, Update, Updated};
pub use parameters::{Group, Parameter, ParameterState, Parameters};
pub use run::{Plan, Run, saved_config};
pub use schedule::{Decay, Schedule};
pub use trainer::{Trainer, TrainerOptions};

pub use crate::model::{BatchLoss, Recompute, Rows};
use std::{io, path::PathBuf};

use crate::{lora::LoraError, model::ModelError};

/// Training cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A setting out of its range.
    #[error("{name} is {value}: {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// As given.
        value: String,
        /// What it must be.
        expected: &'static str,
    },
    /// Parameters that a checkpoint holds, or lacks, or holds in another shape: every difference, one a line.
    #[error("the saved parameters are not those of this run:\n  {}", .0.join("\n  "))]
    Parameters(Vec<String>),
    /// A run that cannot go on because something is not what it was: every difference, one a line.
    #[error(
        "cannot go on from {path}: something is not what it was\n  {}\nrestore it, or start anew with another output folder",
        .differences.join("\n  ")
    )]
    Changed {
        /// The checkpoint.
        path: PathBuf,
        /// What it was and is.
        differences: Vec<String>,
    },
    /// Nothing to go on from.
    #[error("{folder} holds no checkpoint that can be used{}; start without resuming", listed(.passed_over))]
    NoCheckpoint {
        /// The output folder.
        folder: PathBuf,
        /// Checkpoints that are damaged, and why.
        passed_over: Vec<String>,
    },
    /// The output folder belongs to another run.
    #[error(
        "{folder} already holds a run that was saved after step {step}; resume it, or name another output folder"
    )]
    Occupied {
        /// The output folder.
        folder: PathBuf,
        /// Its last step.
        step: u64,
    },
    /// A loss or a gradient that is not finite.
    #[error(
        "the {what} of step {step} is not finite (lines {} of the training data); {}; a lower learning rate, gradient \
         clipping or other data may help",
        .lines.iter().map(u64::to_string).collect::<Vec<_>>().join(", "),
        saved_where(.saved)
    )]
    NotFinite {
        /// The step that could not be made, from 1.
        step: u64,
        /// Loss or gradient.
        what: &'static str,
        /// The lines of its batches.
        lines: Vec<u64>,
        /// The checkpoint of the step before, unless its values are not finite either.
        saved: Option<PathBuf>,
    },
    /// A file of a run.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The adapter.
    #[error(transparent)]
    Lora(#[from] LoraError),
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl TrainError {
    fn io(action: &'static str, path: &std::path::Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}

fn listed(passed_over: &[String]) -> String {
    if passed_over.is_empty() { String::new() } else { format!(" (damaged: {})", passed_over.join("; ")) }
}

fn saved_where(saved: &Option<PathBuf>) -> String {
    match saved {
        Some(path) => format!("the state before it is saved in {}", path.display()),
        None => "the state before it is not finite either and was not saved".to_owned(),
    }
}
