//! Adapter folders: PEFT's and MLX's, read and written.
//!
//! Reading compares every tensor with what the config promises, and with the model where one is given, and lists all
//! that does not fit. Writing never leaves half a file, and never mixes two adapters in one folder.

mod mlx;
mod peft;
mod stored;

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

pub use stored::StoredAdapter;

use super::{Adapter, LoraError};
use crate::{durable, model::weights};

const CONFIG: &str = "adapter_config.json";

/// A way to store adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Hugging Face PEFT: `adapter_model.safetensors`.
    Peft,
    /// mlx-lm: `adapters.safetensors`.
    Mlx,
}

/// What a written folder says beside the matrices.
#[derive(Debug, Clone, Copy, Default)]
pub struct SaveOptions<'a> {
    /// The base model, as its user calls it.
    pub base_model: Option<&'a str>,
    /// How many blocks the model has. MLX counts from the last one: without this, an adapter for some blocks only is
    /// refused unless they are known to be the last.
    pub layer_count: Option<usize>,
}

impl Format {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Peft, Self::Mlx];

    /// As the command line and JSON call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Peft => "peft",
            Self::Mlx => "mlx",
        }
    }

    /// The file of the matrices.
    pub fn weights_file(self) -> &'static str {
        match self {
            Self::Peft => "adapter_model.safetensors",
            Self::Mlx => "adapters.safetensors",
        }
    }

    /// What a folder holds; files of both formats are an error.
    pub fn detect(folder: &Path) -> Result<Self, LoraError> {
        let has = |format: Self| folder.join(format.weights_file()).is_file();
        match (has(Self::Peft), has(Self::Mlx)) {
            (true, false) => Ok(Self::Peft),
            (false, true) => Ok(Self::Mlx),
            (true, true) => Err(LoraError::folder(
                folder,
                "it holds both adapter_model.safetensors (PEFT) and adapters.safetensors (MLX); \
                 put one of them into a folder of its own",
            )),
            (false, false) => Err(LoraError::folder(folder, missing(folder))),
        }
    }

    /// Whether an adapter may be written into this folder: one that is new, empty, or holds an adapter in this format and
    /// nothing else.
    pub fn check_vacant(self, folder: &Path) -> Result<(), LoraError> {
        self.check_replaceable(folder)?;
        let mut foreign = Vec::new();
        let entries = match std::fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(|source| LoraError::io("read", folder, source))?,
        };
        for entry in entries {
            let entry = entry.map_err(|source| LoraError::io("read", folder, source))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != CONFIG && name != self.weights_file() {
                foreign.push(name);
            }
        }
        if !foreign.is_empty() {
            foreign.sort();
            foreign.truncate(5);
            let reason = format!(
                "it holds other files ({}); name a new folder, or one that holds only {} adapter",
                foreign.join(", "),
                self
            );
            return Err(LoraError::folder(folder, reason));
        }
        Ok(())
    }

    /// Whether nothing in the folder would contradict an adapter in this format.
    pub(crate) fn check_replaceable(self, folder: &Path) -> Result<(), LoraError> {
        let other = Self::ALL.into_iter().find(|&format| format != self);
        for name in other.into_iter().map(Self::weights_file).chain(["adapter_model.bin"]) {
            if folder.join(name).exists() {
                let reason =
                    format!("it already holds {name}, an adapter in another format; name a new folder");
                return Err(LoraError::folder(folder, reason));
            }
        }
        for name in ["config.json", "model.safetensors", "model.safetensors.index.json"] {
            if folder.join(name).exists() {
                let reason = format!("it is the folder of a model ({name}); an adapter needs one of its own");
                return Err(LoraError::folder(folder, reason));
            }
        }
        let config = folder.join(CONFIG);
        if config.exists() {
            let found = read_config(&config)?;
            if found.contains_key("peft_type") != (self == Self::Peft) {
                let reason =
                    format!("its {CONFIG} belongs to an adapter in another format; name a new folder");
                return Err(LoraError::folder(folder, reason));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Peft => "a PEFT",
            Self::Mlx => "an MLX",
        })
    }
}

impl Adapter {
    /// Writes the adapter into a folder, which is made if it does not exist and keeps its other files. An adapter in this
    /// format that is already there is replaced. What the format cannot say is an error.
    ///
    /// Matrices keep their type, but for the parts of an MLX adapter that differ in scale: those become f32.
    pub fn save(&self, folder: &Path, format: Format, options: &SaveOptions<'_>) -> Result<(), LoraError> {
        format.check_replaceable(folder)?;
        let plain = self.plain()?;
        let (config, tensors) = match format {
            Format::Peft => peft::to_file(&plain, options)?,
            Format::Mlx => mlx::to_file(&plain, options)?,
        };
        std::fs::create_dir_all(folder).map_err(|source| LoraError::io("create", folder, source))?;
        let path = folder.join(format.weights_file());
        let metadata = match format {
            Format::Peft => [("format".to_owned(), "pt".to_owned())].into(),
            Format::Mlx => Default::default(),
        };
        durable::write_file(&path, |file| weights::write_tensors(file, &tensors, &metadata))
            .map_err(|source| LoraError::io("write", &path, source))?;
        // Last: a folder with a config is complete.
        let path = folder.join(CONFIG);
        let write = |file: &mut dyn io::Write| {
            serde_json::to_writer_pretty(&mut *file, &config)?;
            file.write_all(b"\n")
        };
        durable::write_file(&path, |file| write(file)).map_err(|source| LoraError::io("write", &path, source))
    }
}

/// What to say about a folder without an adapter.
fn missing(folder: &Path) -> String {
    let has = |name: &str| folder.join(name).exists();
    let expected = "expected adapter_model.safetensors (PEFT) or adapters.safetensors (MLX)";
    if folder.is_file() {
        "it is a file; an adapter is a folder".to_owned()
    } else if !folder.is_dir() {
        "there is no such folder".to_owned()
    } else if has("adapter_model.bin") {
        "its adapter_model.bin is a pickle, which is not read; save the adapter again with safe_serialization=True"
            .to_owned()
    } else if has("config.json") {
        format!("it holds a model, not an adapter; {expected}")
    } else {
        format!("it holds no adapter; {expected}")
    }
}

fn read_config(path: &Path) -> Result<Map<String, Value>, LoraError> {
    let bytes = std::fs::read(path).map_err(|source| LoraError::io("read", path, source))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| LoraError::folder(path, format!("it is not valid: {error}")))
}

impl LoraError {
    fn folder(path: &Path, reason: impl Into<String>) -> Self {
        Self::Folder { path: PathBuf::from(path), reason: reason.into() }
    }

    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: PathBuf::from(path), source }
    }
}

/// The most frequent value; of equally frequent ones the first.
fn most_common<T: Copy + PartialEq>(values: impl Iterator<Item = T> + Clone) -> Option<T> {
    let count = |value: T| values.clone().filter(|other| *other == value).count();
    let mut best: Option<(usize, T)> = None;
    for value in values.clone() {
        let count = count(value);
        if best.is_none_or(|(most, _)| count > most) {
            best = Some((count, value));
        }
    }
    best.map(|(_, value)| value)
}

/// A number that reads back as the same f32, whole where it is: `16`, `0.1`.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        return Value::from(value as i64);
    }
    Value::from(value)
}
