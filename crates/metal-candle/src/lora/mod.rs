//! Adapters: what they are, how they are made, stored, applied and merged.
//!
//! An adapter is data: a map from the places of a model to small matrices. The model itself never changes;
//! whoever runs it says which adapter applies to which rows.

mod active;
mod adapter;
mod config;
mod site;

pub use active::ActiveAdapter;
pub(crate) use active::{ActiveLayer, BlockAdapter};
pub use adapter::{Adapter, AdapterLayer};
pub use config::{Initialisation, LoraConfig, Method, Scaling};
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
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}
