//! Adapters: what they are, how they are made, stored, applied and merged.
//!
//! An adapter is data: a map from the places of a model to small matrices. The model itself never changes;
//! whoever runs it says which adapter applies to which rows.

use std::{io, path::PathBuf};

use crate::model::{ModelError, weights::WeightsError};

mod active;
mod adapter;
mod config;
mod files;
mod initial;
mod merge;
mod norms;
mod pissa;
mod site;

pub use active::ActiveAdapter;
pub(crate) use active::{ActiveLayer, BlockAdapter};
pub(crate) use adapter::factors_to;
pub use adapter::{Adapter, AdapterLayer};
pub use config::{Initialisation, LoraConfig, Method, Scaling};
pub use files::{Format, SaveOptions, StoredAdapter};
pub(crate) use merge::copy_others;
pub use merge::{MergeOptions, Merged, merge};
pub use norms::Norms;
pub use site::{Module, Part, Site, SiteShape};

/// An adapter cannot be made, read, written or applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoraError {
    /// Targets that name nothing in the model.
    #[error("no module of the model matches the target {target:?}; it has: {}", .modules.join(", "))]
    UnknownTarget {
        /// As given.
        target: String,
        /// What could have been meant.
        modules: Vec<String>,
    },
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
    /// An adapter that belongs to another model: every mismatch, one a line.
    #[error("the adapter does not fit the model:\n  {}", .0.join("\n  "))]
    Misfit(Vec<String>),
    /// A folder that holds no adapter, or must not be written into.
    #[error("{path}: {reason}")]
    Folder {
        /// The folder, or a file in it.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// An adapter's files that contradict themselves or the model, or ask for what is not supported: every problem, one a line.
    #[error("{path} cannot be used:\n  {}", .problems.join("\n  "))]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Each with the tensor or key that it concerns.
        problems: Vec<String>,
    },
    /// MLX counts blocks from the last, and nobody said how many there are.
    #[error(
        "MLX counts blocks from the last, and this adapter is for some of them: it must be known how many the model has"
    )]
    BlockCountUnknown,
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A model's files, or a safetensors file.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl From<WeightsError> for LoraError {
    fn from(error: WeightsError) -> Self {
        Self::Model(error.into())
    }
}
