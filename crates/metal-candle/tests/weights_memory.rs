//! Loading keeps the peak of resident memory near the size of the file. Alone in this binary, because
//! the system counts the peak per process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::io::{BufWriter, Write};

use candle_core::Device;
use metal_candle::model::weights::Checkpoint;

/// The highest resident memory of this process so far, in bytes.
fn peak_resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

#[test]
fn peak_memory_stays_near_the_file_size() {
    const TENSORS: usize = 150;
    const TENSOR_BYTES: usize = 2 << 20;
    const FILE_BYTES: usize = TENSORS * TENSOR_BYTES;
    let folder = tempfile::tempdir().unwrap();
    let mut file = BufWriter::new(File::create(folder.path().join("model.safetensors")).unwrap());
    let entries = (0..TENSORS).map(|index| {
        let (begin, end) = (index * TENSOR_BYTES, (index + 1) * TENSOR_BYTES);
        format!(r#""{index}":{{"dtype":"BF16","shape":[1024,1024],"data_offsets":[{begin},{end}]}}"#)
    });
    let header = format!("{{{}}}", entries.collect::<Vec<_>>().join(","));
    file.write_all(&support::file_with_header(&header, &[])).unwrap();
    let tensor: Vec<u8> = (0..TENSOR_BYTES as u32 / 2)
        .flat_map(|index| ((index.wrapping_mul(2_654_435_761) >> 16) as u16 & 0xbfff).to_le_bytes())
        .collect();
    for _ in 0..TENSORS {
        file.write_all(&tensor).unwrap();
    }
    file.into_inner().unwrap();
    drop(tensor);

    let before = peak_resident_bytes();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let weights = checkpoint.load(&Device::Cpu, None, &mut |_, _| {}).unwrap();
    let grown = peak_resident_bytes() - before;
    assert_eq!(weights.names().count(), TENSORS);
    assert!(grown >= FILE_BYTES - (8 << 20), "the weights must be resident: {} MiB", grown >> 20);
    // 5 % and one window of mapped pages.
    let limit = FILE_BYTES + FILE_BYTES / 20 + (16 << 20);
    assert!(grown <= limit, "peak grew by {} MiB for a file of {} MiB", grown >> 20, FILE_BYTES >> 20);
}
