//! What can be wrong with weight files, said so that a person can act on it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use candle_core::DType;

use super::FileDtype;

/// Opening, checking or loading weight files failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// Neither a single file nor an index.
    #[error(
        "{folder} holds no weights: expected model.safetensors, or model.safetensors.index.json with its shards; {found}"
    )]
    NoWeights {
        /// The folder that was searched.
        folder: PathBuf,
        /// What is there instead.
        found: String,
    },
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file ends before its header says it does.
    #[error("{path} is truncated: it has {found} bytes and {} are missing; download or copy it again", .expected.saturating_sub(*.found))]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The bytes that its header calls for.
        expected: u64,
        /// The bytes that it has.
        found: u64,
    },
    /// The file goes on after its last tensor.
    #[error("{path} has {extra} bytes after its last tensor: it is damaged, or not a safetensors file")]
    TrailingBytes {
        /// The file.
        path: PathBuf,
        /// The surplus.
        extra: u64,
    },
    /// The header of a safetensors file makes no sense.
    #[error("{path} is not a valid safetensors file: {reason}")]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The index file makes no sense.
    #[error("{path} is not a valid index of shards: {reason}")]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Index and shards contradict each other.
    #[error(
        "{path} and the shards beside it do not fit together:{problems}\n  download the missing or outdated files again"
    )]
    Shards {
        /// The index file.
        path: PathBuf,
        /// Everything that does not fit.
        problems: Box<ShardProblems>,
    },
    /// Weights packed by a quantisation scheme.
    #[error(
        "the weights in {folder} are quantised ({scheme}; tensor `{tensor}`), which is not supported: use the model's bf16, f16 or f32 version"
    )]
    Quantised {
        /// The model folder.
        folder: PathBuf,
        /// The scheme, as far as names tell.
        scheme: &'static str,
        /// The tensor that shows it.
        tensor: String,
    },
    /// Tensors of a dtype that cannot be computed with.
    #[error("{folder} holds tensors whose dtype is not f32, bf16 or f16:{}\n  convert them, or use another version of the model", List(.tensors))]
    UnsupportedDtype {
        /// The model folder.
        folder: PathBuf,
        /// Each tensor with its dtype.
        tensors: Vec<String>,
    },
    /// Weights can only be converted to the floating point dtypes.
    #[error("cannot load weights as {0:?}: use f32, bf16 or f16")]
    UnsupportedTarget(DType),
    /// The checkpoint is not the one that the config describes.
    #[error("the weights in {folder} are not those that its config.json describes:{difference}")]
    Difference {
        /// The model folder.
        folder: PathBuf,
        /// Everything that differs.
        difference: Box<Difference>,
    },
    /// NaN or infinite weights, or weights too large for the wanted dtype.
    #[error("{path} holds weights that cannot be used:{}\n  {}", List(.tensors), bad_tensor_hint(.tensors))]
    BadWeights {
        /// The file.
        path: PathBuf,
        /// The tensors concerned.
        tensors: Vec<BadTensor>,
    },
    /// The file on disk is not the one that was opened.
    #[error(
        "{path} changed while it was being loaded: it had {expected} bytes and now has {found}; load it again"
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// Its size when its header was read.
        expected: u64,
        /// Its size now.
        found: u64,
    },
    /// A model asked for a tensor that is not there, or took it twice.
    #[error("the tensor `{name}` was not loaded, or was already taken")]
    NotLoaded {
        /// The tensor.
        name: String,
    },
    /// There is no memory for weights that come from no file.
    #[error("there is no memory for the weights: {0}")]
    OutOfMemory(io::Error),
    /// Candle refused to make a tensor.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl WeightsError {
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> WeightsError {
        WeightsError::Io { action, path: path.into(), source }
    }

    pub(super) fn header(path: &Path, reason: impl Into<String>) -> WeightsError {
        WeightsError::Header { path: path.into(), reason: reason.into() }
    }

    pub(super) fn index(path: &Path, reason: impl Into<String>) -> WeightsError {
        WeightsError::Index { path: path.into(), reason: reason.into() }
    }
}

/// A tensor with weights that are not numbers, or too large.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadTensor {
    /// Its name.
    pub name: String,
    /// How many of its weights are bad.
    pub count: usize,
    /// The first of them, counted in file order.
    pub first_index: usize,
    /// Set if the file's value was finite and only the conversion to this dtype overflowed.
    pub overflowed: Option<DType>,
}

impl fmt::Display for BadTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BadTensor { name, count, first_index, overflowed } = self;
        match overflowed {
            None => write!(f, "`{name}`: {count} NaN or infinite, the first at index {first_index}"),
            Some(dtype) => {
                write!(f, "`{name}`: {count} too large for {dtype:?}, the first at index {first_index}")
            }
        }
    }
}

fn bad_tensor_hint(tensors: &[BadTensor]) -> &'static str {
    if tensors.iter().all(|tensor| tensor.overflowed.is_some()) {
        "load the model as bf16 or f32"
    } else {
        "the file is damaged, or the training that wrote it diverged"
    }
}

/// Everything in which an index and its shards contradict each other.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShardProblems {
    /// Shards that the index names and the folder lacks.
    pub missing_shards: Vec<String>,
    /// Tensors that are not in the shard that the index names.
    pub missing_tensors: Vec<String>,
    /// Tensors in a shard that the index does not list.
    pub unlisted_tensors: Vec<String>,
    /// Tensors that are in two shards.
    pub repeated_tensors: Vec<String>,
}

impl ShardProblems {
    pub(super) fn is_empty(&self) -> bool {
        *self == ShardProblems::default()
    }
}

impl fmt::Display for ShardProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        group(f, "shards that are not in the folder", &self.missing_shards)?;
        group(f, "tensors that are not in their shard", &self.missing_tensors)?;
        group(f, "tensors that the index does not list", &self.unlisted_tensors)?;
        group(f, "tensors that are in two shards", &self.repeated_tensors)
    }
}

/// Everything in which a checkpoint differs from what a model expects.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Difference {
    /// Expected, but not there.
    pub missing: Vec<String>,
    /// There, but not expected.
    pub unexpected: Vec<String>,
    /// Name, found shape, expected shape.
    pub wrong_shape: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// Expected tensors of a dtype that cannot be computed with.
    pub wrong_dtype: Vec<(String, FileDtype)>,
}

impl Difference {
    pub(super) fn is_empty(&self) -> bool {
        *self == Difference::default()
    }

    fn hint(&self) -> String {
        // A name that only gained or lost a prefix says more than two long lists.
        let renamed = self.missing.iter().find_map(|missing| {
            let same_tail = |other: &&String| {
                other.ends_with(&format!(".{missing}")) || missing.ends_with(&format!(".{other}"))
            };
            Some((missing, self.unexpected.iter().find(same_tail)?))
        });
        if let Some((missing, found)) = renamed {
            return format!(
                "the names differ by a prefix (`{found}` instead of `{missing}`): \
                 these may be the weights of a larger model, or of one without its language model head"
            );
        }
        if self.missing == ["lm_head.weight"] && self.unexpected.is_empty() {
            return "the output head is absent: does config.json lack \"tie_word_embeddings\": true?".into();
        }
        if self.missing.is_empty() && self.unexpected.is_empty() && self.wrong_shape.is_empty() {
            return "convert the weights to bf16, f16 or f32".into();
        }
        "config.json and the weights belong to different models, or a file is incomplete: \
         download both again from one revision"
            .into()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shapes = self
            .wrong_shape
            .iter()
            .map(|(name, found, expected)| format!("{name}: found {found:?}, expected {expected:?}"));
        let dtypes = self.wrong_dtype.iter().map(|(name, dtype)| format!("{name}: {dtype}"));
        group(f, "missing", &self.missing)?;
        group(f, "unexpected", &self.unexpected)?;
        group(f, "wrong shape", &shapes.collect::<Vec<_>>())?;
        group(f, "unsupported dtype", &dtypes.collect::<Vec<_>>())?;
        write!(f, "\n  {}", self.hint())
    }
}

/// What a folder without safetensors holds, for the error message.
pub(super) fn describe_folder(folder: &Path) -> String {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return "the folder does not exist or cannot be read".into();
    };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut weights: Vec<String> = names.filter(|name| is_other_weight_file(name)).collect();
    weights.sort();
    match weights.first() {
        None => "the folder has no weight files at all".into(),
        Some(name) if name.ends_with(".safetensors") => {
            format!("`{name}` is there, but under a name that says nothing about what it holds")
        }
        Some(name) => format!("`{name}` is in a format that is not read; convert it to safetensors"),
    }
}

fn is_other_weight_file(name: &str) -> bool {
    [".bin", ".pt", ".pth", ".gguf", ".ggml", ".h5", ".msgpack", ".npz", ".safetensors"]
        .iter()
        .any(|ending| name.ends_with(ending))
}

/// At most this many items of a list are spelled out.
const SHOWN: usize = 20;

/// One headed list inside a longer message; nothing for an empty one.
fn group(f: &mut fmt::Formatter<'_>, title: &str, items: &[String]) -> fmt::Result {
    if items.is_empty() {
        return Ok(());
    }
    write!(f, "\n  {title} ({}):{}", items.len(), List(items))
}

/// Items on lines of their own, cut after [`SHOWN`].
struct List<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for item in self.0.iter().take(SHOWN) {
            write!(f, "\n    {item}")?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n    and {more} more"),
        }
    }
}
