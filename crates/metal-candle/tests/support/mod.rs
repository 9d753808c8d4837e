//! Small safetensors files, right and wrong, for the tests of checkpoints.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::Path;

/// A tensor to write: name, dtype as in the header, shape, bytes.
pub(crate) struct Raw {
    pub(crate) name: String,
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// `f32` values under `name`.
pub(crate) fn raw_f32(name: &str, shape: &[usize], values: &[f32]) -> Raw {
    assert_eq!(values.len(), shape.iter().product::<usize>());
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Raw { name: name.into(), dtype: "F32", shape: shape.into(), bytes }
}

/// Any dtype under `name`, from bytes.
pub(crate) fn raw(name: &str, dtype: &'static str, shape: &[usize], bytes: Vec<u8>) -> Raw {
    Raw { name: name.into(), dtype, shape: shape.into(), bytes }
}

/// The bytes of a safetensors file whose JSON header is `header`, followed by `data`.
pub(crate) fn file_with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

/// The bytes of a valid safetensors file with these tensors, in this order, without any padding.
pub(crate) fn safetensors_file(tensors: &[Raw]) -> Vec<u8> {
    let mut entries = vec![r#""__metadata__":{"format":"pt"}"#.to_string()];
    let mut data = Vec::new();
    for Raw { name, dtype, shape, bytes } in tensors {
        let (begin, end) = (data.len(), data.len() + bytes.len());
        entries.push(format!(
            r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#
        ));
        data.extend_from_slice(bytes);
    }
    file_with_header(&format!("{{{}}}", entries.join(",")), &data)
}

/// Writes `model.safetensors` into `folder`.
pub(crate) fn write_single(folder: &Path, tensors: &[Raw]) {
    std::fs::write(folder.join("model.safetensors"), safetensors_file(tensors)).unwrap();
}

/// Writes an index with these pairs of tensor and shard.
pub(crate) fn write_index(folder: &Path, weight_map: &[(&str, &str)]) {
    let entries: Vec<String> =
        weight_map.iter().map(|(tensor, file)| format!(r#""{tensor}":"{file}""#)).collect();
    let json = format!(r#"{{"metadata":{{"total_size":1}},"weight_map":{{{}}}}}"#, entries.join(","));
    std::fs::write(folder.join("model.safetensors.index.json"), json).unwrap();
}
