//! A model folder with an adapter in its weights: one that any other program can load.
//!
//! N: outputs, K: inputs, r: rank.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value, json};

use super::{Adapter, AdapterLayer, LoraError, Site};
use crate::{
    durable,
    model::{
        self, ModelError,
        weights::{self, Checkpoint, Planned, TensorFile, TensorInfo},
    },
};

/// What is converted at a time.
const PIECE_ELEMENTS: usize = 1 << 20;

/// What to write.
#[derive(Debug, Clone)]
pub struct MergeOptions {
    /// The type of the weights; that of each tensor in the model by default.
    pub dtype: Option<DType>,
    /// The largest file; more weights are divided among several.
    pub shard_bytes: u64,
    /// Keys of `config.json` that are unknown here and known to be harmless.
    pub ignore_config_keys: Vec<String>,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// Weights that the adapter changed.
    pub changed: usize,
    /// All weights.
    pub tensors: usize,
    /// Their size.
    pub bytes: u64,
    /// Files of weights.
    pub shards: usize,
    /// Other files that were copied.
    pub copied: Vec<String>,
}

impl Default for MergeOptions {
    fn default() -> Self {
        Self { dtype: None, shard_bytes: 5_000_000_000, ignore_config_keys: Vec::new() }
    }
}

/// Writes the model of a folder with the adapter merged into a new folder `output`, which appears when all of it is there.
///
/// One tensor at a time is in memory. Sums are made in f32 and rounded once. `progress` is told bytes of weights done and
/// bytes in all.
pub fn merge(
    folder: &Path,
    adapter: &Adapter,
    output: &Path,
    options: &MergeOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Merged, LoraError> {
    check_new(output)?;
    let config = model::Config::load(folder).map_err(ModelError::from)?;
    let spec = model::arch::read(&config, &options.ignore_config_keys).map_err(ModelError::from)?;
    let mut checkpoint = Checkpoint::open(folder).map_err(ModelError::from)?;
    // Of all tensors: what a model can do without is written again too.
    let sources = Source::all(&checkpoint, options.dtype)?;
    checkpoint
        .check(&spec.tensors(), |name| model::is_without_effect(&spec, name))
        .map_err(ModelError::from)?;
    let adapter = adapter.plain()?;
    adapter.check(&spec)?;
    let adapter = adapter.to(&Device::Cpu, DType::F32)?;

    let partial = durable::partial_path(output).map_err(|error| LoraError::io("name", output, error))?;
    fs::create_dir_all(&partial).map_err(|error| LoraError::io("create", &partial, error))?;
    let mut merge = Merge { adapter: &adapter, checkpoint: &checkpoint, progress, done: 0, changed: 0 };
    let written = merge.weights(&sources, &partial, options.shard_bytes).and_then(|merged| {
        let copied = copy_others(folder, &partial, options.dtype)?;
        // An empty folder of this name may be there; a full one is refused by the system too.
        if output.is_dir() {
            fs::remove_dir(output).map_err(|error| LoraError::io("replace", output, error))?;
        }
        let renamed = fs::rename(&partial, output).and_then(|()| durable::sync_folder_of(output));
        renamed.map_err(|error| LoraError::io("write", output, error))?;
        Ok(Merged { copied, ..merged })
    });
    if written.is_err() {
        fs::remove_dir_all(&partial).ok();
    }
    written
}

/// A tensor of the model and how it is written.
struct Source {
    planned: Planned,
    info: TensorInfo,
    shard: usize,
    /// The types of a float: in the file, and to be written.
    dtypes: Option<(DType, DType)>,
    site: Option<Site>,
}

impl Source {
    /// In the order of the files.
    fn all(checkpoint: &Checkpoint, dtype: Option<DType>) -> Result<Vec<Self>, LoraError> {
        let mut sources = Vec::new();
        for (shard, path) in checkpoint.shards().iter().enumerate() {
            let file = TensorFile::open(path)?;
            for (name, info) in file.tensors() {
                let dtypes = info.float_dtype().map(|own| (own, dtype.unwrap_or(own)));
                let planned = match dtypes {
                    Some((_, to)) => Planned::of(name.clone(), to, &info.shape),
                    None => Planned {
                        name: name.clone(),
                        dtype: info.dtype.to_string(),
                        shape: info.shape.clone(),
                        bytes: info.byte_count(),
                    },
                };
                let site = name.strip_suffix(".weight").and_then(Site::parse);
                sources.push(Self { planned, info: info.clone(), shard, dtypes, site });
            }
        }
        Ok(sources)
    }
}

struct Merge<'a> {
    adapter: &'a Adapter,
    checkpoint: &'a Checkpoint,
    progress: &'a mut dyn FnMut(u64, u64),
    done: u64,
    changed: usize,
}

impl Merge<'_> {
    fn weights(&mut self, sources: &[Source], folder: &Path, limit: u64) -> Result<Merged, LoraError> {
        let shards = divide(sources, limit);
        let total: u64 = sources.iter().map(|source| source.planned.bytes as u64).sum();
        let mut places = Map::new();
        for (index, shard) in shards.iter().enumerate() {
            let name = match shards.len() {
                1 => "model.safetensors".to_owned(),
                count => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
            };
            places.extend(shard.iter().map(|source| (source.planned.name.clone(), json!(name))));
            self.shard(shard, &folder.join(name), total)?;
        }
        if shards.len() > 1 {
            places.sort_keys();
            let index = json!({ "metadata": { "total_size": total }, "weight_map": places });
            write_json(&folder.join("model.safetensors.index.json"), &index)?;
        }
        Ok(Merged {
            changed: self.changed,
            tensors: sources.len(),
            bytes: total,
            shards: shards.len(),
            copied: Vec::new(),
        })
    }

    fn shard(&mut self, sources: &[Source], path: &Path, total: u64) -> Result<(), LoraError> {
        let planned: Vec<Planned> = sources.iter().map(|source| source.planned.clone()).collect();
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        // What goes wrong inside keeps its own error.
        let mut failed = None;
        let written = durable::write_file(path, |file| {
            file.write_all(&weights::tensor_header(&planned, &metadata)?)?;
            let mut open: Option<(usize, TensorFile)> = None;
            for source in sources {
                let bytes = self.bytes(source, &mut open).map_err(|error| {
                    failed = Some(error);
                    io::Error::other("a tensor could not be made")
                })?;
                file.write_all(&bytes)?;
                self.done += bytes.len() as u64;
                (self.progress)(self.done, total);
            }
            Ok(())
        });
        match (failed, written) {
            (Some(error), _) => Err(error),
            (None, written) => written.map_err(|error| LoraError::io("write", path, error)),
        }
    }

    /// A tensor as it is to be written.
    fn bytes(
        &mut self,
        source: &Source,
        open: &mut Option<(usize, TensorFile)>,
    ) -> Result<Vec<u8>, LoraError> {
        let file = match open.take() {
            Some((shard, file)) if shard == source.shard => file,
            _ => TensorFile::open(&self.checkpoint.shards()[source.shard])?,
        };
        let (_, file) = open.insert((source.shard, file));
        let layer = source.site.and_then(|site| self.adapter.layers.get(&site));
        let (Some((from, to)), true) = (source.dtypes, layer.is_some() || source.is_converted()) else {
            return Ok(file.bytes(&source.info)?);
        };
        let bytes = match layer {
            None => converted(&file.bytes(&source.info)?, from, to)?,
            Some(layer) => {
                self.changed += 1;
                let weight = file.tensor(&source.info, from)?.to_dtype(DType::F32)?;
                rounded(&merged(&weight, layer)?, to)?
            }
        };
        bytes.ok_or_else(|| {
            let path = self.checkpoint.shards()[source.shard].clone();
            let (name, to) = (&source.planned.name, to.as_str());
            let problem = format!("{name}: it holds numbers that are not finite as {to}; write f32 or bf16");
            LoraError::Unusable { path, problems: vec![problem] }
        })
    }
}

impl Source {
    fn is_converted(&self) -> bool {
        self.dtypes.is_some_and(|(from, to)| from != to)
    }
}

/// `W + scale · B · A`, with DoRA `m / ‖·‖` times its rows; all in f32.
fn merged(weight: &Tensor, layer: &AdapterLayer) -> Result<Tensor, LoraError> {
    let lora = &layer.lora;
    let delta = (lora.b.matmul(&lora.a)? * f64::from(lora.scale))?; // [N, K]
    let sum = (weight + delta)?;
    let Some(magnitude) = &layer.magnitude else { return Ok(sum) };
    let norm = sum.sqr()?.sum_keepdim(1)?.sqrt()?; // [N, 1]
    Ok(sum.broadcast_mul(&magnitude.unsqueeze(1)?.div(&norm)?)?)
}

/// The numbers of a file in another type, in pieces: an embedding is large. `None` if some are not finite in it.
fn converted(bytes: &[u8], from: DType, to: DType) -> Result<Option<Vec<u8>>, LoraError> {
    let mut all = Vec::with_capacity(bytes.len() / from.size_in_bytes() * to.size_in_bytes());
    for piece in bytes.chunks(PIECE_ELEMENTS * from.size_in_bytes()) {
        let shape = [piece.len() / from.size_in_bytes()];
        let piece = Tensor::from_raw_buffer(piece, from, &shape, &Device::Cpu)?;
        let Some(mut bytes) = rounded(&piece.to_dtype(DType::F32)?, to)? else { return Ok(None) };
        all.append(&mut bytes);
    }
    Ok(Some(all))
}

/// Numbers in f32 as a file of this type holds them; `None` if some are not finite in it.
fn rounded(tensor: &Tensor, to: DType) -> Result<Option<Vec<u8>>, LoraError> {
    let rounded = tensor.to_dtype(to)?;
    if !is_finite(&rounded)? {
        return Ok(None);
    }
    let bytes = weights::tensor_bytes(&rounded);
    bytes.map(Some).map_err(|error| LoraError::Tensor(candle_core::Error::wrap(error)))
}

fn is_finite(tensor: &Tensor) -> Result<bool, LoraError> {
    // Zero times anything that is not finite is not a number.
    let zero = (tensor.to_dtype(DType::F32)? * 0.0)?.sum_all()?.to_scalar::<f32>()?;
    Ok(zero == 0.0)
}

/// Runs of tensors that fit into files of this size, or of one tensor each.
fn divide(sources: &[Source], limit: u64) -> Vec<&[Source]> {
    let mut shards = Vec::new();
    let (mut first, mut bytes) = (0, 0);
    for (index, source) in sources.iter().enumerate() {
        let own = source.planned.bytes as u64;
        if index > first && bytes + own > limit {
            shards.push(&sources[first..index]);
            (first, bytes) = (index, 0);
        }
        bytes += own;
    }
    shards.push(&sources[first..]);
    shards
}

/// Everything of a model folder but its weights; `config.json` says the new type.
pub(crate) fn copy_others(from: &Path, to: &Path, dtype: Option<DType>) -> Result<Vec<String>, LoraError> {
    let mut copied = Vec::new();
    let entries = fs::read_dir(from).map_err(|error| LoraError::io("read", from, error))?;
    for entry in entries {
        let entry = entry.map_err(|error| LoraError::io("read", from, error))?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        // Files of the hub's cache are links: what they lead to is copied.
        if !path.is_file() || name.starts_with('.') || holds_weights(&name) {
            continue;
        }
        let target = to.join(&name);
        match dtype.filter(|_| name == "config.json") {
            Some(dtype) => write_json(&target, &with_dtype(&path, dtype)?)?,
            None => copy(&path, &target)?,
        }
        copied.push(name);
    }
    copied.sort();
    Ok(copied)
}

fn holds_weights(name: &str) -> bool {
    let endings = [
        ".safetensors",
        ".bin",
        ".pt",
        ".pth",
        ".ckpt",
        ".gguf",
        ".ggml",
        ".h5",
        ".msgpack",
        ".npz",
        ".onnx",
        ".onnx_data",
        ".index.json",
    ];
    endings.iter().any(|ending| name.ends_with(ending))
}

fn copy(from: &Path, to: &Path) -> Result<(), LoraError> {
    let bytes = fs::read(from).map_err(|error| LoraError::io("read", from, error))?;
    durable::write_file(to, |file| file.write_all(&bytes)).map_err(|error| LoraError::io("write", to, error))
}

fn with_dtype(path: &Path, dtype: DType) -> Result<Value, LoraError> {
    let bytes = fs::read(path).map_err(|error| LoraError::io("read", path, error))?;
    let mut config: Map<String, Value> = serde_json::from_slice(&bytes).map_err(|error| {
        LoraError::Folder { path: path.into(), reason: format!("it is not valid: {error}") }
    })?;
    let name = match dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        _ => "float32",
    };
    // The name since transformers 5, and the one before.
    let key = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    config.insert(key.to_owned(), json!(name));
    Ok(Value::Object(config))
}

fn write_json(path: &Path, value: &Value) -> Result<(), LoraError> {
    durable::write_file(path, |file| {
        serde_json::to_writer_pretty(&mut *file, value)?;
        file.write_all(b"\n")
    })
    .map_err(|error| LoraError::io("write", path, error))
}

fn check_new(output: &Path) -> Result<(), LoraError> {
    let reason = match fs::read_dir(output).map(Iterator::count) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(0) => return Ok(()),
        Err(_) => "it is not a folder; name a new one",
        Ok(_) => "it is not empty; name a new folder for the merged model",
    };
    Err(LoraError::Folder { path: PathBuf::from(output), reason: reason.to_owned() })
}
