//! Damages safetensors files in the ways that disks, downloads and people do.

use std::{fs, path::Path};

use half::{bf16, f16};
use serde_json::Value;

/// Bytes of the length in front of the header.
const PREFIX: usize = 8;

/// Keeps only the first `length` bytes of a longer file.
pub fn truncate(path: &Path, length: usize) {
    let mut bytes = read(path);
    assert!(length < bytes.len(), "{} has only {} bytes", path.display(), bytes.len());
    bytes.truncate(length);
    write(path, &bytes);
}

/// Inverts one byte.
pub fn flip_byte(path: &Path, offset: usize) {
    let mut bytes = read(path);
    bytes[offset] = !bytes[offset];
    write(path, &bytes);
}

/// Inverts the first byte of the header, so that it is no longer JSON.
pub fn flip_header(path: &Path) {
    flip_byte(path, PREFIX);
}

/// Rewrites the header; the data stays as it is.
pub fn edit_header(path: &Path, edit: impl FnOnce(&mut Value)) {
    let (mut header, data) = split(path);
    edit(&mut header);
    let header = header.to_string();
    let length = u64::try_from(header.len()).expect("a length fits 64 bits").to_le_bytes();
    write(path, &[&length, header.as_bytes(), &data].concat());
}

/// Makes the header claim another dtype for one tensor, such as `I64`.
pub fn set_dtype(path: &Path, tensor: &str, dtype: &str) {
    edit_header(path, |header| *entry(header, tensor, "dtype") = dtype.into());
}

/// Makes the header claim another shape for one tensor.
pub fn set_shape(path: &Path, tensor: &str, shape: &[usize]) {
    edit_header(path, |header| *entry(header, tensor, "shape") = shape.into());
}

/// Gives one tensor another name.
pub fn rename(path: &Path, tensor: &str, name: &str) {
    edit_header(path, |header| {
        let header = header.as_object_mut().expect("a header is an object");
        let entry = header.shift_remove(tensor).unwrap_or_else(|| panic!("no tensor {tensor}"));
        header.insert(name.to_owned(), entry);
    });
}

/// Replaces one element of a float tensor by NaN.
pub fn poison(path: &Path, tensor: &str, index: usize) {
    let (mut header, data) = split(path);
    let dtype = entry(&mut header, tensor, "dtype").as_str().expect("a dtype is a string").to_owned();
    let start = entry(&mut header, tensor, "data_offsets")[0].as_u64().expect("an offset is a number");
    let nan = match dtype.as_str() {
        "F32" => f32::NAN.to_le_bytes().to_vec(),
        "F16" => f16::NAN.to_le_bytes().to_vec(),
        "BF16" => bf16::NAN.to_le_bytes().to_vec(),
        other => panic!("{tensor} is {other}: only floats have a NaN"),
    };
    let mut bytes = read(path);
    let start = usize::try_from(start).expect("the file fits memory");
    let offset = bytes.len() - data.len() + start + index * nan.len();
    bytes[offset..offset + nan.len()].copy_from_slice(&nan);
    write(path, &bytes);
}

fn entry<'header>(header: &'header mut Value, tensor: &str, key: &str) -> &'header mut Value {
    let tensor = header.get_mut(tensor).unwrap_or_else(|| panic!("no tensor {tensor}"));
    tensor.get_mut(key).expect("a tensor has a dtype, a shape and offsets")
}

fn split(path: &Path) -> (Value, Vec<u8>) {
    let bytes = read(path);
    let (length, rest) =
        bytes.split_first_chunk::<PREFIX>().expect("a safetensors file starts with a length");
    let length = usize::try_from(u64::from_le_bytes(*length)).expect("the header fits memory");
    let (header, data) = rest.split_at(length);
    (serde_json::from_slice(header).expect("the header is JSON"), data.to_vec())
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::PathBuf;

    use safetensors::{Dtype, SafeTensors};
    use tempfile::TempDir;

    use super::*;
    use crate::{
        tiny::{TinyModel, tiny_model},
        tolerance::Precision,
    };

    const NORM: &str = "model.norm.weight";

    fn file(precision: Precision) -> (TempDir, PathBuf) {
        let folder = tiny_model(&TinyModel { precision, ..TinyModel::default() });
        let path = folder.path().join("model.safetensors");
        (folder, path)
    }

    fn is_valid(path: &Path) -> bool {
        SafeTensors::deserialize(&read(path)).is_ok()
    }

    #[test]
    fn truncated_and_flipped_files_are_not_safetensors() {
        for damage in [|path: &Path| truncate(path, read(path).len() - 1), flip_header] {
            let (_folder, path) = file(Precision::F32);
            assert!(is_valid(&path));
            damage(&path);
            assert!(!is_valid(&path));
        }
    }

    #[test]
    fn a_flipped_byte_is_the_only_change() {
        let (_folder, path) = file(Precision::F32);
        let before = read(&path);
        flip_byte(&path, before.len() - 3);
        let after = read(&path);
        let changed: Vec<usize> = (0..before.len()).filter(|&at| before[at] != after[at]).collect();
        assert_eq!(changed, [before.len() - 3]);
    }

    #[test]
    fn header_edits_are_seen_and_keep_the_data() {
        let (_folder, path) = file(Precision::F16);
        let before = read(&path);
        let before = SafeTensors::deserialize(&before).unwrap().tensor(NORM).unwrap().data().to_vec();
        set_dtype(&path, NORM, "BF16");
        set_shape(&path, NORM, &[4, 6]);
        rename(&path, NORM, "other");
        let after = read(&path);
        let after = SafeTensors::deserialize(&after).unwrap();
        let tensor = after.tensor("other").unwrap();
        assert_eq!((tensor.dtype(), tensor.shape(), tensor.data()), (Dtype::BF16, &[4, 6][..], &before[..]));
        assert!(after.tensor(NORM).is_err());
    }

    #[test]
    fn poison_puts_one_nan_into_one_tensor() {
        for precision in [Precision::F32, Precision::F16, Precision::Bf16] {
            let (_folder, path) = file(precision);
            poison(&path, NORM, 5);
            let bytes = read(&path);
            let file = SafeTensors::deserialize(&bytes).unwrap();
            for (name, view) in file.iter() {
                let is_nan = |value: &[u8]| match *value {
                    [a, b, c, d] => f32::from_le_bytes([a, b, c, d]).is_nan(),
                    [a, b] if precision == Precision::F16 => f16::from_le_bytes([a, b]).is_nan(),
                    [a, b] => bf16::from_le_bytes([a, b]).is_nan(),
                    _ => unreachable!("floats have two or four bytes"),
                };
                let width = view.data().len() / view.shape().iter().product::<usize>();
                let found: Vec<usize> = view
                    .data()
                    .chunks(width)
                    .enumerate()
                    .filter(|(_, value)| is_nan(value))
                    .map(|(at, _)| at)
                    .collect();
                let expected: &[usize] = if name == NORM { &[5] } else { &[] };
                assert_eq!(found, expected, "{name}");
            }
        }
    }
}
