//! Training: batches to gradients, gradients to better parameters.

pub mod data;
pub mod events;
mod forecast;
mod optimizer;
mod parameters;
pub mod report;
mod schedule;
mod sums;
mod trainer;

pub use forecast::{Forecast, Workload, time_left};
pub use optimizer::{Optimizer, OptimizerConfig, Update, Updated};
pub use parameters::{Group, Parameter, ParameterState, Parameters};
pub use schedule::{Decay, Schedule};
pub use trainer::{Recompute, Trainer, TrainerOptions};

pub use crate::model::{BatchLoss, Rows};
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
