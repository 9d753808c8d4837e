//! Writing safetensors: the header first, then one tensor after another, so that only one has to be in memory.

use std::collections::BTreeMap;
use std::io::{self, Write};

use candle_core::{DType, Tensor};
use half::{bf16, f16};
use serde_json::{Map, Value, json};

/// A tensor that is to be written.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    pub(crate) name: String,
    /// As the format spells it, such as `BF16`.
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: usize,
}

impl Planned {
    /// A float tensor.
    pub(crate) fn of(name: String, dtype: DType, shape: &[usize]) -> Planned {
        let bytes = shape.iter().product::<usize>() * dtype.size_in_bytes();
        Planned { name, dtype: dtype.as_str().to_uppercase(), shape: shape.to_vec(), bytes }
    }
}

/// The bytes before the data: the length of the header, and the header.
pub(crate) fn header(planned: &[Planned], metadata: &BTreeMap<String, String>) -> io::Result<Vec<u8>> {
    let mut entries = Map::new();
    if !metadata.is_empty() {
        entries.insert("__metadata__".to_owned(), json!(metadata));
    }
    let mut start = 0;
    for Planned { name, dtype, shape, bytes } in planned {
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, start + bytes] });
        entries.insert(name.clone(), entry);
        start += bytes;
    }
    let mut json = serde_json::to_vec(&Value::Object(entries))?;
    // The data begins at a multiple of 8, as the format advises.
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    Ok(header)
}

/// Writes tensors that are in memory.
pub(crate) fn write_tensors(
    to: &mut impl Write,
    tensors: &[(String, Tensor)],
    metadata: &BTreeMap<String, String>,
) -> io::Result<()> {
    let planned: Vec<Planned> = tensors
        .iter()
        .map(|(name, tensor)| Planned::of(name.clone(), tensor.dtype(), tensor.dims()))
        .collect();
    to.write_all(&header(&planned, metadata)?)?;
    tensors.iter().try_for_each(|(_, tensor)| to.write_all(&tensor_bytes(tensor)?))
}

/// The numbers of a float tensor as a file holds them.
pub(crate) fn tensor_bytes(tensor: &Tensor) -> io::Result<Vec<u8>> {
    let flat = tensor.flatten_all().map_err(io::Error::other)?;
    match tensor.dtype() {
        DType::F32 => Ok(flat
            .to_vec1::<f32>()
            .map_err(io::Error::other)?
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()),
        DType::BF16 => Ok(flat
            .to_vec1::<bf16>()
            .map_err(io::Error::other)?
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()),
        DType::F16 => Ok(flat
            .to_vec1::<f16>()
            .map_err(io::Error::other)?
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()),
        other => Err(io::Error::other(format!("a tensor of type {} is not written", other.as_str()))),
    }
}
