//! What can go wrong between a model's name and its folder.

use std::io;
#[cfg(feature = "hub")]
use std::path::Path;
use std::path::PathBuf;

use crate::model::weights::WeightsError;

/// Finding or downloading model files failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The text is neither a folder nor a possible name.
    #[error("`{text}` does not name a model: {reason}; give a folder, org/name or org/name@revision")]
    BadName {
        /// What was given.
        text: String,
        /// Why it is refused.
        reason: String,
    },
    /// A path that does not exist.
    #[error(
        "there is no folder {path}; a model folder holds config.json, tokenizer.json and model.safetensors (or model.safetensors.index.json with its shards)"
    )]
    NoSuchFolder {
        /// The path.
        path: PathBuf,
    },
    /// A path to something else.
    #[error("{path} is a file; give the folder that holds config.json and the weights")]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// The build lacks the feature.
    #[error(
        "cannot download {model}: this build has no hub access (its feature `hub` is off); give a folder"
    )]
    WithoutHub {
        /// The model.
        model: String,
    },
    /// Neither a variable nor a home folder.
    #[error("there is no place for the model cache: set HF_HOME to a folder")]
    NoCacheFolder,
    /// An environment variable with a value that means nothing.
    #[error("the variable {name} is `{value}`; use 1 or 0")]
    BadVariable {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// No such model.
    #[error("{endpoint} has no model {model} (there is no folder of this name either); check the spelling")]
    RepoNotFound {
        /// The model's id.
        model: String,
        /// The hub asked.
        endpoint: String,
    },
    /// The model exists, the branch, tag or commit does not.
    #[error("the model {model} has no branch, tag or commit `{revision}`")]
    RevisionNotFound {
        /// The model's id.
        model: String,
        /// What was asked for.
        revision: String,
    },
    /// A file that the repository lists or needs is not there.
    #[error("the model {model} has no file {file}")]
    FileNotFound {
        /// The model with its revision.
        model: String,
        /// The file.
        file: String,
    },
    /// The model holds no safetensors weights.
    #[error(
        "the model {model} has no safetensors weights ({found}); use a version in the transformers format"
    )]
    NoWeights {
        /// The model with its revision.
        model: String,
        /// What it has instead.
        found: String,
    },
    /// The hub wants to know who asks.
    #[error("{endpoint} does not give access to {model} (status {status}): {hint}")]
    Denied {
        /// The model's id.
        model: String,
        /// The hub asked.
        endpoint: String,
        /// 401 or 403.
        status: u16,
        /// What to do.
        hint: &'static str,
    },
    /// No answer at all.
    #[error(
        "cannot reach {endpoint}: {reason}; check the network and HF_ENDPOINT, or set HF_HUB_OFFLINE=1 to use only the cache"
    )]
    Unreachable {
        /// The hub asked.
        endpoint: String,
        /// The last failure.
        reason: String,
    },
    /// An answer that is an error of the server.
    #[error("{url} answered with status {status}; try again later")]
    Status {
        /// The address.
        url: String,
        /// The status.
        status: u16,
    },
    /// An answer that is not what a hub says.
    #[error("{url} did not answer like a model hub: {reason}; check HF_ENDPOINT")]
    BadAnswer {
        /// The address.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The transfer broke and did not recover.
    #[error(
        "the download of {file} broke off after {received} of {expected} bytes: {reason}; start again to continue it"
    )]
    Broken {
        /// The file.
        file: String,
        /// Bytes that arrived.
        received: u64,
        /// Bytes that belong to it.
        expected: u64,
        /// The last failure.
        reason: String,
    },
    /// The server contradicts itself about a size.
    #[error(
        "the size of {file} is wrong: the hub lists {listed} bytes but {served} are served; nothing was kept"
    )]
    WrongSize {
        /// The file.
        file: String,
        /// The size in the hub's list or metadata.
        listed: u64,
        /// The size of what was sent.
        served: u64,
    },
    /// The right number of bytes, but not those that the hub means.
    #[error(
        "the contents of {file} are damaged: the hub names the hash {expected}, what was served has {found}; nothing was kept; start again, and look at proxies and mirrors on the way if it stays so"
    )]
    Corrupt {
        /// The file.
        file: String,
        /// The hub's hash.
        expected: String,
        /// That of what was sent.
        found: String,
    },
    /// No space left.
    #[error(
        "the disk is full or a limit is reached: {path} needs {needed} more bytes; free space or set HF_HOME to another disk, then start again to continue"
    )]
    DiskFull {
        /// The file being written.
        path: PathBuf,
        /// How much is missing of it.
        needed: u64,
    },
    /// The cache cannot be read or written.
    #[error(
        "cannot {action} {path}: {source}; the model cache must be writable, set HF_HOME to another folder if it is not"
    )]
    Cache {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Offline, and not everything is there.
    #[error("offline, and the cache {cache} does not hold {model} completely; missing: {}; go online once, or unset HF_HUB_OFFLINE", missing.join(", "))]
    NotInCache {
        /// The model with its revision.
        model: String,
        /// The cache folder.
        cache: PathBuf,
        /// What is missing.
        missing: Vec<String>,
    },
    /// The model's index of shards makes no sense.
    #[error(transparent)]
    Index(#[from] WeightsError),
}

impl HubError {
    pub(super) fn bad_name(text: &str, reason: &str) -> HubError {
        HubError::BadName { text: text.into(), reason: reason.into() }
    }

    #[cfg(feature = "hub")]
    pub(super) fn bad_answer(url: &str, reason: impl Into<String>) -> HubError {
        HubError::BadAnswer { url: url.into(), reason: reason.into() }
    }

    #[cfg(feature = "hub")]
    pub(super) fn cache(action: &'static str, path: &Path, source: io::Error) -> HubError {
        HubError::Cache { action, path: path.into(), source }
    }
}
