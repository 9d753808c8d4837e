//! Checkpoints: the safetensors files of one folder, checked as a whole, then loaded.
//!
//! [`Checkpoint::open`] reads headers only. [`Checkpoint::check`] compares them with what a model expects
//! and names every difference at once. [`Checkpoint::load`] brings the numbers into memory in the dtype
//! of the file: no second copy, no wider copy.

mod error;
mod header;
mod index;
mod initial;
mod load;
mod random;
mod read;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

pub use error::{BadTensor, Difference, ShardProblems, WeightsError};
pub use header::{TensorInfo, read_header};
pub use index::parse_index;
pub use safetensors::Dtype as FileDtype;

pub(crate) use read::TensorFile;
pub(crate) use write::{Planned, header as tensor_header, tensor_bytes, write_tensors};

use error::describe_folder;

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";

/// The weights of a model folder: which tensors there are, and where.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    shards: Vec<PathBuf>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Checkpoint {
    /// Reads the headers of `model.safetensors`, or of the shards that `model.safetensors.index.json`
    /// lists. A folder with both is read as the Python libraries read it: the single file counts.
    pub fn open(folder: &Path) -> Result<Checkpoint, WeightsError> {
        let single = folder.join(SINGLE_FILE);
        let index = folder.join(INDEX_FILE);
        let (shards, tensors) = if single.is_file() {
            let tensors = header::read_file(&single, 0)?;
            (vec![single], tensors.into_iter().collect())
        } else if index.is_file() {
            index::open_shards(folder, &index)?
        } else {
            return Err(WeightsError::NoWeights { folder: folder.into(), found: describe_folder(folder) });
        };
        refuse_quantised(folder, &tensors)?;
        Ok(Checkpoint { folder: folder.into(), shards, tensors })
    }

    /// One safetensors file, whatever it is called and holds.
    pub(crate) fn of_file(path: &Path) -> Result<Checkpoint, WeightsError> {
        let tensors = header::read_file(path, 0)?.into_iter().collect();
        let folder = path.parent().unwrap_or(path).into();
        Ok(Checkpoint { folder, shards: vec![path.into()], tensors })
    }

    /// Forgets the tensors that are not `wanted`.
    pub(crate) fn keep(&mut self, mut wanted: impl FnMut(&str, &TensorInfo) -> bool) {
        self.tensors.retain(|name, info| wanted(name, info));
    }

    /// The tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The files that hold them.
    pub(crate) fn shards(&self) -> &[PathBuf] {
        &self.shards
    }

    /// The bytes of all tensors in their files' dtype.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|info| info.byte_count() as u64).sum()
    }

    /// Compares the tensors with those that a model `expected`, and names all differences in one error.
    ///
    /// Tensors whose name is `ignored` may be there; they are forgotten, so [`load`](Self::load)
    /// does not read them.
    pub fn check(
        &mut self,
        expected: &[(String, Vec<usize>)],
        ignored: impl Fn(&str) -> bool,
    ) -> Result<(), WeightsError> {
        let names: BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        self.keep(|name, _| names.contains(name) || !ignored(name));
        let mut difference = Difference::default();
        for (name, shape) in expected {
            match self.tensors.get(name) {
                None => difference.missing.push(name.clone()),
                Some(info) if info.shape != *shape => {
                    difference.wrong_shape.push((name.clone(), info.shape.clone(), shape.clone()));
                }
                Some(_) => {}
            }
        }
        for (name, info) in &self.tensors {
            if !names.contains(name.as_str()) {
                difference.unexpected.push(name.clone());
            } else if info.float_dtype().is_none() {
                difference.wrong_dtype.push((name.clone(), info.dtype));
            }
        }
        if difference.is_empty() {
            return Ok(());
        }
        Err(WeightsError::Difference { folder: self.folder.clone(), difference: Box::new(difference) })
    }

    /// Loads every tensor onto `device`, converted to `dtype` if one is given.
    ///
    /// On the CPU all tensors of one file and dtype become views into one buffer on huge pages, each
    /// starting at a multiple of 64 bytes; pages of the file are given back as soon as they are copied,
    /// so the resident memory stays near the size of the weights. Elsewhere each tensor is
    /// uploaded once. A weight that is not finite is an error. `progress` is called with
    /// (bytes done, bytes in total), in the files' dtype.
    ///
    /// The files are memory-mapped meanwhile and must not be changed by others; see
    /// [`FileMap`](metal_candle_kernels::memory::FileMap).
    pub fn load(
        &self,
        device: &Device,
        dtype: Option<DType>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Weights, WeightsError> {
        load::load(self, device, dtype, progress)
    }
}

/// Loaded tensors by name. A model takes them out one by one.
#[derive(Debug, Default)]
pub struct Weights {
    tensors: BTreeMap<String, Tensor>,
}

impl Weights {
    /// Removes and returns a tensor.
    pub fn take(&mut self, name: &str) -> Result<Tensor, WeightsError> {
        self.tensors.remove(name).ok_or_else(|| WeightsError::NotLoaded { name: name.into() })
    }

    /// Whether the tensor is there (and was not taken).
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The names that were not taken yet.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
}

impl FromIterator<(String, Tensor)> for Weights {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(tensors: I) -> Weights {
        Weights { tensors: tensors.into_iter().collect() }
    }
}

/// Packed checkpoints would otherwise show as hundreds of missing and unexpected tensors.
fn refuse_quantised(folder: &Path, tensors: &BTreeMap<String, TensorInfo>) -> Result<(), WeightsError> {
    let packed = |stem: &str| {
        tensors.get(&format!("{stem}.weight")).is_some_and(|weight| weight.dtype == FileDtype::U32)
    };
    let scheme_of = |name: &str, info: &TensorInfo| -> Option<&'static str> {
        if name.ends_with(".qweight") {
            Some("GPTQ or AWQ")
        } else if name.contains(".quant_state.") || name.ends_with(".absmax") || name.ends_with(".SCB") {
            Some("bitsandbytes")
        } else if name.ends_with(".weight_packed") {
            Some("compressed-tensors")
        } else if name.strip_suffix(".scales").is_some_and(packed) {
            Some("MLX")
        } else if name.ends_with("_blocks") && info.dtype == FileDtype::U8 {
            Some("MXFP4")
        } else if name.ends_with(".weight_scale") || name.ends_with(".weight_scale_inv") {
            Some("FP8 or INT8")
        } else {
            None
        }
    };
    let found = tensors.iter().find_map(|(name, info)| Some((scheme_of(name, info)?, name)));
    match found {
        Some((scheme, name)) => {
            Err(WeightsError::Quantised { folder: folder.into(), scheme, tensor: name.clone() })
        }
        None => Ok(()),
    }
}
