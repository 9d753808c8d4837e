//! What a checkpoint holds arrives in memory bit by bit, whatever the dtype and the number of files.
#![allow(clippy::unwrap_used)]

mod support;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use metal_candle::model::weights::{Checkpoint, Weights, WeightsError};
use support::{Raw, raw, raw_f32, safetensors_file, write_index, write_single};
use tempfile::{TempDir, tempdir};

fn load(folder: &TempDir, dtype: Option<DType>) -> Result<Weights, WeightsError> {
    Checkpoint::open(folder.path())?.load(&Device::Cpu, dtype, &mut |_, _| {})
}

/// Finite values without a pattern that a wrong offset could hide behind.
fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|index| ((index * 7919) % 1009) as f32 / 64.0 - 7.0).collect()
}

fn raw_bf16(name: &str, shape: &[usize], values: &[f32]) -> Raw {
    raw(name, "BF16", shape, values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect())
}

fn raw_f16(name: &str, shape: &[usize], values: &[f32]) -> Raw {
    raw(name, "F16", shape, values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect())
}

fn flat_f32(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_float_dtype_arrives_unchanged() {
    let folder = tempdir().unwrap();
    let (a, b, c) = (numbers(6), numbers(15), numbers(1));
    // An f16 tensor of odd length first, so that the f32 tensor is misaligned in the file.
    write_single(
        folder.path(),
        &[
            raw_f16("half", &[3, 5], &b),
            raw_f32("full", &[2, 3], &a),
            raw_bf16("scalar", &[], &c),
            raw_bf16("none", &[0, 4], &[]),
        ],
    );
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.total_bytes(), 30 + 24 + 2);
    assert_eq!(checkpoint.tensors()["full"].shape, [2, 3]);
    let mut weights = load(&folder, None).unwrap();
    let full = weights.take("full").unwrap();
    assert_eq!((full.dtype(), full.dims(), flat_f32(&full)), (DType::F32, &[2, 3][..], a));
    let half = weights.take("half").unwrap();
    assert_eq!((half.dtype(), half.dims()), (DType::F16, &[3, 5][..]));
    assert_eq!(flat_f32(&half), b.iter().map(|v| f16::from_f32(*v).to_f32()).collect::<Vec<_>>());
    let scalar = weights.take("scalar").unwrap();
    assert_eq!(
        (scalar.dtype(), scalar.dims(), flat_f32(&scalar)),
        (DType::BF16, &[][..], vec![bf16::from_f32(c[0]).to_f32()])
    );
    assert_eq!(weights.take("none").unwrap().dims(), [0, 4]);
    assert!(matches!(weights.take("full"), Err(WeightsError::NotLoaded { .. })), "taken twice");
}

#[test]
fn large_tensors_cross_pieces_and_windows() {
    let folder = tempdir().unwrap();
    // 40 MB: more than one window, and pieces that end inside both tensors.
    let (a, b) = (numbers(7_000_001), numbers(2_999_999));
    write_single(folder.path(), &[raw_f32("a", &[7_000_001], &a), raw_f32("b", &[2_999_999], &b)]);
    let mut reports = Vec::new();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let mut weights =
        checkpoint.load(&Device::Cpu, None, &mut |done, total| reports.push((done, total))).unwrap();
    assert!(reports.len() > 1 && reports.is_sorted(), "{reports:?}");
    assert_eq!(reports.last(), Some(&(40_000_000, 40_000_000)));
    assert!(flat_f32(&weights.take("a").unwrap()) == a);
    assert!(flat_f32(&weights.take("b").unwrap()) == b);
}

#[test]
fn tensors_are_contiguous_aligned_views() {
    let folder = tempdir().unwrap();
    write_single(
        folder.path(),
        &[
            raw_bf16("a", &[3], &numbers(3)),
            raw_bf16("b", &[5, 7], &numbers(35)),
            raw_bf16("c", &[1], &[1.0]),
        ],
    );
    let mut weights = load(&folder, None).unwrap();
    for name in ["a", "b", "c"] {
        let tensor = weights.take(name).unwrap();
        assert!(tensor.is_contiguous());
        let (storage, layout) = tensor.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else { panic!("not on the CPU") };
        let values = storage.as_slice::<bf16>().unwrap();
        assert_eq!(values[layout.start_offset()..].as_ptr() as usize % 64, 0, "{name}");
    }
}

#[test]
fn weights_convert_on_request() {
    let folder = tempdir().unwrap();
    let values = numbers(50);
    write_single(
        folder.path(),
        &[raw_bf16("a", &[50], &values), raw_f32("b", &[50], &values), raw_f16("c", &[50], &values)],
    );
    for target in [DType::F32, DType::BF16, DType::F16] {
        let mut weights = load(&folder, Some(target)).unwrap();
        let mut original = load(&folder, None).unwrap();
        for name in ["a", "b", "c"] {
            let converted = weights.take(name).unwrap();
            assert_eq!(converted.dtype(), target);
            let expected = original.take(name).unwrap().to_dtype(target).unwrap();
            assert_eq!(flat_f32(&converted), flat_f32(&expected), "{name} as {target:?}");
        }
    }
    assert!(matches!(load(&folder, Some(DType::I64)), Err(WeightsError::UnsupportedTarget(DType::I64))));
}

#[test]
fn shards_load_like_one_file() {
    let folder = tempdir().unwrap();
    let (a, b) = (numbers(10), numbers(20));
    let file = safetensors_file(&[raw_f32("a", &[10], &a), raw_bf16("c", &[2], &[1.0, 2.0])]);
    std::fs::write(folder.path().join("model-00001-of-00002.safetensors"), file).unwrap();
    std::fs::write(
        folder.path().join("model-00002-of-00002.safetensors"),
        safetensors_file(&[raw_f32("b", &[4, 5], &b)]),
    )
    .unwrap();
    let (first, second) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    write_index(folder.path(), &[("a", first), ("b", second), ("c", first)]);
    let mut weights = load(&folder, None).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(flat_f32(&weights.take("a").unwrap()), a);
    assert_eq!(flat_f32(&weights.take("b").unwrap()), b);
    assert_eq!(flat_f32(&weights.take("c").unwrap()), [1.0, 2.0]);
    assert!(!weights.contains("a"));
}

#[test]
fn ignored_tensors_are_not_loaded() {
    let folder = tempdir().unwrap();
    write_single(folder.path(), &[raw_f32("a", &[1], &[1.0]), raw("mask", "I64", &[1], vec![0; 8])]);
    let expected = [("a".to_string(), vec![1])];
    let mut checkpoint = Checkpoint::open(folder.path()).unwrap();
    checkpoint.check(&expected, |name| name == "mask").unwrap();
    assert_eq!(checkpoint.total_bytes(), 4);
    let weights = checkpoint.load(&Device::Cpu, None, &mut |_, _| {}).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["a"]);
}
