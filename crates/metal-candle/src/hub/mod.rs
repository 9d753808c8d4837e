//! Where model files come from: a folder, or the Hugging Face hub through its cache.
//!
//! The cache has the layout of the Python libraries and is shared with them. A file appears under its
//! final name only when it is complete and has the hash that the hub names it by; a broken download stays beside it as `….incomplete` and is
//! continued next time.

#[cfg(feature = "hub")]
mod checksum;
#[cfg(feature = "hub")]
mod client;
mod error;
#[cfg(feature = "hub")]
mod fetch;
mod options;
#[cfg(feature = "hub")]
mod snapshot;
mod source;

pub use error::HubError;
pub use options::{FilesWanted, HubOptions};
pub use source::{HubModel, ModelSource};

use std::path::PathBuf;

/// Hears how a download goes on. All methods do nothing unless implemented.
pub trait DownloadProgress {
    /// The files that will be downloaded, with their sizes as far as the hub told them. Called at most once
    /// before the first weights; small files may already have been fetched.
    fn plan(&mut self, _files: &[(String, Option<u64>)]) {}
    /// `done` of `total` bytes of `file` are on disk. May go back if a transfer has to start again.
    fn update(&mut self, _file: &str, _done: u64, _total: u64) {}
}

impl DownloadProgress for () {}

/// The folder with the model's files, downloaded first if they are on the hub and not in the cache.
#[cfg(feature = "hub")]
pub fn fetch(
    source: &ModelSource,
    options: &HubOptions,
    progress: &mut dyn DownloadProgress,
) -> Result<PathBuf, HubError> {
    match source {
        ModelSource::Folder(folder) => Ok(folder.clone()),
        ModelSource::Hub(model) if options.offline => fetch::from_cache(model, options),
        ModelSource::Hub(model) => fetch::from_hub(model, options, progress),
    }
}

/// The folder with the model's files. This build knows no hub: its feature `hub` is off.
#[cfg(not(feature = "hub"))]
pub fn fetch(
    source: &ModelSource,
    _options: &HubOptions,
    _progress: &mut dyn DownloadProgress,
) -> Result<PathBuf, HubError> {
    match source {
        ModelSource::Folder(folder) => Ok(folder.clone()),
        ModelSource::Hub(model) => Err(HubError::WithoutHub { model: model.to_string() }),
    }
}
