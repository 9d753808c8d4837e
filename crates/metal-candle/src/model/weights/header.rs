//! The header of a safetensors file: a length, then JSON that says where each tensor lies.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use candle_core::DType;
use safetensors::tensor::{Metadata, TensorInfo as RawInfo};
use serde::Deserialize;
use serde::de::{IgnoredAny, IntoDeserializer, MapAccess, Visitor};

use super::{FileDtype, WeightsError};

/// The longest header that the format allows.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// No model has weights of more dimensions.
const MAX_DIMENSIONS: usize = 8;
const LENGTH_BYTES: u64 = 8;

/// What a file's header says about one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The dtype in the file.
    pub dtype: FileDtype,
    /// The dimensions.
    pub shape: Vec<usize>,
    /// Which of the checkpoint's files holds it.
    pub(super) shard: usize,
    /// Where in that file its bytes lie.
    pub(super) range: Range<usize>,
}

impl TensorInfo {
    /// The bytes that it takes in the file.
    pub fn byte_count(&self) -> usize {
        self.range.len()
    }

    /// The candle dtype, if it is one that models compute with.
    pub fn float_dtype(&self) -> Option<DType> {
        match self.dtype {
            FileDtype::F32 => Some(DType::F32),
            FileDtype::BF16 => Some(DType::BF16),
            FileDtype::F16 => Some(DType::F16),
            _ => None,
        }
    }
}

/// Reads the header of the file `path`, the checkpoint's file number `shard`.
pub(super) fn read_file(path: &Path, shard: usize) -> Result<Vec<(String, TensorInfo)>, WeightsError> {
    let file = File::open(path).map_err(|source| WeightsError::io("open", path, source))?;
    let file_bytes = file.metadata().map_err(|source| WeightsError::io("inspect", path, source))?.len();
    let mut tensors = read_header(file, file_bytes, path)?;
    for (_, info) in &mut tensors {
        info.shard = shard;
    }
    Ok(tensors)
}

/// Reads and validates the header of a safetensors file of `file_bytes` bytes.
///
/// Never reads beyond the header and never allocates more than a small multiple of its length. `path` is
/// for messages only.
pub fn read_header(
    mut reader: impl Read,
    file_bytes: u64,
    path: &Path,
) -> Result<Vec<(String, TensorInfo)>, WeightsError> {
    if file_bytes < LENGTH_BYTES {
        let reason = match file_bytes {
            0 => "it is empty".to_string(),
            few => format!("it has only {few} bytes"),
        };
        return Err(WeightsError::header(path, reason));
    }
    let read_failed = |source| WeightsError::io("read", path, source);
    let mut length = [0; LENGTH_BYTES as usize];
    reader.read_exact(&mut length).map_err(read_failed)?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MAX_HEADER_BYTES {
        let reason = format!(
            "its first bytes call for a header of {header_bytes} bytes, and {MAX_HEADER_BYTES} are allowed"
        );
        return Err(WeightsError::header(path, reason));
    }
    let data_start = LENGTH_BYTES + header_bytes;
    if data_start > file_bytes {
        return Err(WeightsError::Truncated { path: path.into(), expected: data_start, found: file_bytes });
    }
    let mut json = vec![0; header_bytes as usize];
    reader.read_exact(&mut json).map_err(read_failed)?;
    let tensors = parse(&json, data_start, path)?;
    let end = tensors.last().map_or(data_start, |(_, info)| info.range.end as u64);
    match end.cmp(&file_bytes) {
        std::cmp::Ordering::Equal => Ok(tensors),
        std::cmp::Ordering::Greater => {
            Err(WeightsError::Truncated { path: path.into(), expected: end, found: file_bytes })
        }
        std::cmp::Ordering::Less => {
            Err(WeightsError::TrailingBytes { path: path.into(), extra: file_bytes - end })
        }
    }
}

/// The tensors in the order of their bytes.
fn parse(json: &[u8], data_start: u64, path: &Path) -> Result<Vec<(String, TensorInfo)>, WeightsError> {
    let Entries(mut entries) = serde_json::from_slice(json)
        .map_err(|error| WeightsError::header(path, format!("its header cannot be read: {error}")))?;
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut raw = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        let info = entry.validated().map_err(|reason| {
            WeightsError::header(path, format!("the tensor `{}` {reason}", shortened(&name)))
        })?;
        raw.push((name, info));
    }
    // The crate checks what concerns all tensors: no gaps, no overlaps.
    let metadata = Metadata::new(None, raw.clone())
        .map_err(|error| WeightsError::header(path, format!("{error} (tensors overlap or leave a gap)")))?;
    let end = data_start.checked_add(metadata.data_len() as u64);
    if end.is_none_or(|end| usize::try_from(end).is_err()) {
        return Err(WeightsError::header(path, "its offsets are larger than any file"));
    }
    let start = data_start as usize;
    let located = raw.into_iter().map(|(name, RawInfo { dtype, shape, data_offsets: (begin, end) })| {
        (name, TensorInfo { dtype, shape, shard: 0, range: start + begin..start + end })
    });
    Ok(located.collect())
}

/// The header's JSON, with repeated names refused: a plain map would keep only the last.
struct Entries(Vec<(String, Entry)>);

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl Entry {
    /// Checks what concerns one tensor; an error completes "the tensor `name` …".
    fn validated(self) -> Result<RawInfo, String> {
        let Entry { dtype, shape, data_offsets: (begin, end) } = self;
        let known: Result<FileDtype, serde::de::value::Error> =
            FileDtype::deserialize(dtype.as_str().into_deserializer());
        let Ok(known) = known else {
            return Err(format!("has the unknown dtype `{}`", shortened(&dtype)));
        };
        if shape.len() > MAX_DIMENSIONS {
            return Err(format!("has {} dimensions, and {MAX_DIMENSIONS} are allowed", shape.len()));
        }
        let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let bits = elements.and_then(|elements| elements.checked_mul(known.bitsize()));
        let Some(bits) = bits else {
            return Err(format!("has the shape {shape:?}, which is larger than any memory"));
        };
        match end.checked_sub(begin) {
            Some(bytes) if bits % 8 == 0 && bytes == bits / 8 => {}
            Some(bytes) => {
                let needed = bits.div_ceil(8);
                return Err(format!(
                    "of shape {shape:?} and dtype {dtype} needs {needed} bytes but has {bytes}"
                ));
            }
            None => return Err(format!("ends at byte {end}, before its start at {begin}")),
        }
        Ok(RawInfo { dtype: known, shape, data_offsets: (begin, end) })
    }
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object that describes each tensor by its name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let mut entries: Vec<(String, Entry)> = Vec::new();
        let mut names = std::collections::HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let entry = map.next_value()?;
            if !names.insert(name.clone()) {
                let message = format!("the tensor `{}` is described twice", shortened(&name));
                return Err(serde::de::Error::custom(message));
            }
            entries.push((name, entry));
        }
        Ok(Entries(entries))
    }
}

/// Names come from the file and may be absurdly long.
pub(super) fn shortened(name: &str) -> String {
    const SHOWN: usize = 120;
    match name.char_indices().nth(SHOWN) {
        None => name.to_string(),
        Some((cut, _)) => format!("{}…", &name[..cut]),
    }
}
