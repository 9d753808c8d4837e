//! Bad weight files: each is refused with a message that says what, where and what to do.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use candle_core::{DType, Device};
use metal_candle::model::weights::{BadTensor, Checkpoint, WeightsError, parse_index};
use support::{file_with_header, raw, raw_f32, safetensors_file, write_index, write_single};
use tempfile::{TempDir, tempdir};

/// The message of opening a folder whose `model.safetensors` has these bytes.
fn message_for_file(bytes: &[u8]) -> String {
    let folder = tempdir().unwrap();
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("model.safetensors"), "must name the file: {error}");
    error
}

#[track_caller]
fn assert_contains(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

fn tiny() -> Vec<u8> {
    safetensors_file(&[raw_f32("a", &[2, 2], &[1.0, 2.0, 3.0, 4.0]), raw_f32("b", &[1], &[5.0])])
}

#[test]
fn folders_without_weights() {
    let folder = tempdir().unwrap();
    let open = |path: &Path| Checkpoint::open(path).unwrap_err().to_string();
    assert_contains(&open(folder.path()), &["model.safetensors.index.json", "no weight files at all"]);
    std::fs::write(folder.path().join("pytorch_model.bin"), b"x").unwrap();
    assert_contains(&open(folder.path()), &["pytorch_model.bin", "convert it to safetensors"]);
    assert_contains(&open(&folder.path().join("nowhere")), &["nowhere", "does not exist"]);
}

#[test]
fn files_that_are_not_safetensors() {
    assert_contains(&message_for_file(b""), &["it is empty"]);
    assert_contains(&message_for_file(b"abc"), &["only 3 bytes"]);
    assert_contains(&message_for_file(b"<!DOCTYPE html><html>"), &["call for a header of"]);
    assert_contains(&message_for_file(&u64::MAX.to_le_bytes()), &["18446744073709551615"]);
    assert_contains(&message_for_file(&file_with_header("not json", b"")), &["cannot be read", "line 1"]);
    assert_contains(
        &message_for_file(&file_with_header("[1]", b"")),
        &["an object that describes each tensor"],
    );
    assert_contains(&message_for_file(&file_with_header(r#"{"a":{"dtype":"F32"}}"#, b"")), &["shape"]);
    assert_contains(&message_for_file(&file_with_header(&"[".repeat(5000), b"")), &["cannot be read"]);
}

#[test]
fn truncated_files_say_how_much_is_missing() {
    let whole = tiny();
    for missing in [1, 3, 20] {
        let message = message_for_file(&whole[..whole.len() - missing]);
        assert_contains(&message, &["truncated", &format!("{missing} are missing")]);
    }
    // Cut inside the header.
    assert_contains(&message_for_file(&whole[..30]), &["truncated", "it has 30 bytes"]);
    let mut longer = whole;
    longer.extend_from_slice(&[0; 7]);
    assert_contains(&message_for_file(&longer), &["7 bytes after its last tensor"]);
}

#[test]
fn every_possible_truncation_is_refused() {
    let whole = tiny();
    for length in 0..whole.len() {
        message_for_file(&whole[..length]);
    }
}

#[test]
fn headers_that_lie() {
    let header = |entries: &str| message_for_file(&file_with_header(&format!("{{{entries}}}"), &[0; 16]));
    let entry = |name: &str, dtype: &str, shape: &str, begin: u64, end: u64| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    };
    let two = |first: String, second: String| format!("{first},{second}");
    let overlap = two(entry("a", "F32", "[3]", 0, 12), entry("b", "F32", "[2]", 8, 16));
    assert_contains(&header(&overlap), &["`b`", "overlap"]);
    let gap = two(entry("a", "F32", "[1]", 0, 4), entry("b", "F32", "[2]", 8, 16));
    assert_contains(&header(&gap), &["`b`", "gap"]);
    let twice = two(entry("a", "F32", "[4]", 0, 16), entry("a", "F32", "[4]", 0, 16));
    assert_contains(&header(&twice), &["`a`", "twice"]);
    assert_contains(&header(&entry("a", "F32", "[5]", 0, 16)), &["`a`", "needs 20 bytes but has 16"]);
    assert_contains(&header(&entry("a", "F32", "[4]", 16, 0)), &["`a`", "before its start"]);
    assert_contains(&header(&entry("a", "Q4_K", "[4]", 0, 16)), &["`a`", "unknown dtype `Q4_K`"]);
    let enormous = format!("[{0},{0}]", u64::MAX);
    assert_contains(&header(&entry("a", "F32", &enormous, 0, 16)), &["`a`", "larger than any memory"]);
    assert_contains(&header(&entry("a", "F32", "[1,1,1,1,1,1,1,1,4]", 0, 16)), &["9 dimensions"]);
    // The sum of header and data overflows 64 bits.
    let far = entry("a", "U8", &format!("[{}]", u64::MAX), 0, u64::MAX);
    assert_contains(&header(&far), &["larger than any"]);
    assert_contains(&header(&entry("a", "F32", "[-1]", 0, 16)), &["cannot be read"]);
}

#[test]
fn an_index_cannot_leave_its_folder() {
    for shard in
        ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "", "a\\\\b.safetensors", "x.bin"]
    {
        let json = format!(r#"{{"weight_map":{{"t":"{shard}"}}}}"#);
        let error = parse_index(json.as_bytes(), Path::new("index.json")).unwrap_err().to_string();
        assert_contains(&error, &["index.json", "`t`", "beside the index"]);
    }
    let folder = tempdir().unwrap();
    let inside = folder.path().join("inside");
    std::fs::create_dir(&inside).unwrap();
    std::fs::write(folder.path().join("x.safetensors"), tiny()).unwrap();
    write_index(&inside, &[("a", "../x.safetensors"), ("b", "../x.safetensors")]);
    assert!(matches!(Checkpoint::open(&inside), Err(WeightsError::Index { .. })));
}

#[test]
fn an_index_must_be_an_index() {
    let error = |json: &str| parse_index(json.as_bytes(), Path::new("index.json")).unwrap_err().to_string();
    assert_contains(&error("{}"), &["weight_map"]);
    assert_contains(&error(r#"{"weight_map":{}}"#), &["weight_map is empty"]);
    assert_contains(&error(r#"{"weight_map":{"a":1}}"#), &["expected a string"]);
    assert_contains(&error(r#"{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}"#), &["`a`", "twice"]);
}

#[test]
fn an_index_and_its_shards_must_agree() {
    let folder = tempdir().unwrap();
    let shard = |name: &str, tensors: &[&str]| {
        let tensors: Vec<_> = tensors.iter().map(|tensor| raw_f32(tensor, &[1], &[1.0])).collect();
        std::fs::write(folder.path().join(name), safetensors_file(&tensors)).unwrap();
    };
    shard("1.safetensors", &["a", "both"]);
    shard("2.safetensors", &["b", "both", "extra"]);
    write_index(
        folder.path(),
        &[
            ("a", "1.safetensors"),
            ("b", "1.safetensors"),
            ("both", "2.safetensors"),
            ("gone", "2.safetensors"),
            ("far", "3.safetensors"),
        ],
    );
    let error = Checkpoint::open(folder.path()).unwrap_err();
    let WeightsError::Shards { problems, .. } = &error else { panic!("{error}") };
    assert_eq!(problems.missing_shards, ["3.safetensors"]);
    assert_eq!(problems.missing_tensors, ["b: 1.safetensors", "gone: 2.safetensors"]);
    assert_eq!(problems.unlisted_tensors, ["extra: 2.safetensors"]);
    assert_eq!(problems.repeated_tensors, ["both: 1.safetensors and 2.safetensors"]);
    assert_contains(&error.to_string(), &["3.safetensors", "gone", "extra", "both", "again"]);
}

#[test]
fn quantised_checkpoints_are_named() {
    let cases = [
        (raw("l.qweight", "I32", &[1], vec![0; 4]), "GPTQ or AWQ"),
        (raw("l.weight.absmax", "F32", &[1], vec![0; 4]), "bitsandbytes"),
        (raw("l.weight.quant_state.bitsandbytes__nf4", "U8", &[1], vec![0]), "bitsandbytes"),
        (raw("l.SCB", "F32", &[1], vec![0; 4]), "bitsandbytes"),
        (raw("l.weight_packed", "I32", &[1], vec![0; 4]), "compressed-tensors"),
        (raw("l.weight_scale_inv", "F32", &[1], vec![0; 4]), "FP8"),
        (raw("l.mlp_blocks", "U8", &[1], vec![0]), "MXFP4"),
    ];
    for (tensor, scheme) in cases {
        let folder = tempdir().unwrap();
        let name = tensor.name.clone();
        write_single(folder.path(), &[tensor]);
        let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
        assert_contains(&error, &[scheme, &name, "bf16, f16 or f32"]);
    }
    let folder = tempdir().unwrap();
    write_single(
        folder.path(),
        &[raw("l.scales", "F16", &[1], vec![0; 2]), raw("l.weight", "U32", &[1], vec![0; 4])],
    );
    assert_contains(&Checkpoint::open(folder.path()).unwrap_err().to_string(), &["MLX"]);
}

fn shapes(pairs: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>)> {
    pairs.iter().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect()
}

fn open_tiny() -> (TempDir, Checkpoint) {
    let folder = tempdir().unwrap();
    std::fs::write(folder.path().join("model.safetensors"), tiny()).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    (folder, checkpoint)
}

#[test]
fn a_check_names_all_differences() {
    let folder = tempdir().unwrap();
    write_single(
        folder.path(),
        &[
            raw_f32("a", &[2], &[1.0, 2.0]),
            raw_f32("odd", &[1], &[1.0]),
            raw("b", "F64", &[1], vec![0; 8]),
            raw("kept.mask", "U8", &[1], vec![0]),
        ],
    );
    let mut checkpoint = Checkpoint::open(folder.path()).unwrap();
    let expected = shapes(&[("a", &[1, 2]), ("b", &[1]), ("x", &[1]), ("y", &[1])]);
    let error = checkpoint.check(&expected, |name| name.ends_with(".mask")).unwrap_err();
    let WeightsError::Difference { difference, .. } = &error else { panic!("{error}") };
    assert_eq!(difference.missing, ["x", "y"]);
    assert_eq!(difference.unexpected, ["odd"]);
    assert_eq!(difference.wrong_shape, [("a".to_string(), vec![2], vec![1, 2])]);
    assert_contains(
        &error.to_string(),
        &["missing (2)", "unexpected (1)", "a: found [2], expected [1, 2]", "b: F64", "download both again"],
    );
}

#[test]
fn long_lists_are_cut() {
    let (_folder, mut checkpoint) = open_tiny();
    let expected: Vec<_> = (0..50).map(|index| (format!("layer.{index:02}"), vec![1])).collect();
    let message = checkpoint.check(&expected, |_| true).unwrap_err().to_string();
    assert_contains(&message, &["missing (50)", "layer.19", "and 30 more"]);
    assert!(!message.contains("layer.20"));
}

#[test]
fn hints_follow_from_the_difference() {
    let (_folder, mut checkpoint) = open_tiny();
    let message = checkpoint.check(&shapes(&[("model.a", &[2, 2]), ("b", &[1])]), |_| false).unwrap_err();
    assert_contains(&message.to_string(), &["`a` instead of `model.a`"]);
    let (_folder, mut checkpoint) = open_tiny();
    let tied = shapes(&[("a", &[2, 2]), ("b", &[1]), ("lm_head.weight", &[1])]);
    assert_contains(&checkpoint.check(&tied, |_| false).unwrap_err().to_string(), &["tie_word_embeddings"]);
}

#[test]
fn unsupported_dtypes_are_named_when_loading() {
    let folder = tempdir().unwrap();
    write_single(folder.path(), &[raw("a", "F8_E4M3", &[1], vec![0]), raw("b", "F64", &[1], vec![0; 8])]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let error = checkpoint.load(&Device::Cpu, None, &mut |_, _| {}).unwrap_err().to_string();
    assert_contains(&error, &["a: F8_E4M3", "b: F64", "convert"]);
}

#[test]
fn weights_that_are_not_finite_are_located() {
    let folder = tempdir().unwrap();
    let mut many = vec![0.5f32; 600_000]; // more than one piece
    many[300_001] = f32::NAN;
    many[599_999] = f32::NEG_INFINITY;
    write_single(folder.path(), &[raw_f32("good", &[1], &[f32::MAX]), raw_f32("bad", &[600, 1000], &many)]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let error = checkpoint.load(&Device::Cpu, None, &mut |_, _| {}).unwrap_err();
    let WeightsError::BadWeights { tensors, .. } = &error else { panic!("{error}") };
    let bad = BadTensor { name: "bad".into(), count: 2, first_index: 300_001, overflowed: None };
    assert_eq!(tensors, &[bad]);
    assert_contains(&error.to_string(), &["model.safetensors", "`bad`: 2 NaN or infinite", "index 300001"]);
}

#[test]
fn halves_that_are_not_finite_are_found() {
    for (dtype, bits) in [("BF16", 0x7f80u16), ("BF16", 0xffc1), ("F16", 0x7c00), ("F16", 0xfe00)] {
        let folder = tempdir().unwrap();
        let bytes = [0x3c00u16, bits].iter().flat_map(|half| half.to_le_bytes()).collect();
        write_single(folder.path(), &[raw("a", dtype, &[2], bytes)]);
        for target in [None, Some(DType::F32)] {
            let loaded = Checkpoint::open(folder.path()).unwrap().load(&Device::Cpu, target, &mut |_, _| {});
            let error = loaded.unwrap_err().to_string();
            assert_contains(&error, &["`a`: 1 NaN or infinite, the first at index 1"]);
        }
    }
}

#[test]
fn conversion_that_overflows_is_told_apart() {
    let folder = tempdir().unwrap();
    write_single(folder.path(), &[raw_f32("a", &[3], &[1.0, 1e6, 2.0])]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let error = checkpoint.load(&Device::Cpu, Some(DType::F16), &mut |_, _| {}).unwrap_err().to_string();
    assert_contains(&error, &["`a`: 1 too large for F16", "bf16 or f32"]);
    checkpoint.load(&Device::Cpu, Some(DType::BF16), &mut |_, _| {}).unwrap();
}

#[test]
fn a_file_that_shrinks_after_opening_is_an_error() {
    let (folder, checkpoint) = open_tiny();
    std::fs::write(folder.path().join("model.safetensors"), &tiny()[..40]).unwrap();
    let error = checkpoint.load(&Device::Cpu, None, &mut |_, _| {}).unwrap_err().to_string();
    assert_contains(&error, &["changed while", "now has 40"]);
    std::fs::write(folder.path().join("model.safetensors"), b"").unwrap();
    checkpoint.load(&Device::Cpu, None, &mut |_, _| {}).unwrap_err();
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let error = checkpoint.load(&Device::Cpu, None, &mut |_, _| {}).unwrap_err().to_string();
    assert_contains(&error, &["cannot open", "model.safetensors"]);
}
