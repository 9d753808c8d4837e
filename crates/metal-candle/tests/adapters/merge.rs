//! The folders that merging writes.

use std::{collections::BTreeMap, fs, path::Path};

use candle_core::{DType, Device, Tensor};
use metal_candle::lora::{Adapter, LoraConfig, MergeOptions, Merged, Method, merge};
use metal_candle_testkit::{
    golden,
    tiny::{TinyModel, tiny_model},
    tolerance::{Gate, Precision, assert_close, tolerance},
};
use serde_json::Value;

use crate::support::{close, config, load, logits, model_folder, prompt, random_adapter, with};

fn merged(folder: &Path, adapter: &Adapter, options: &MergeOptions) -> (tempfile::TempDir, Merged) {
    let parent = tempfile::tempdir().unwrap();
    let merged = merge(folder, adapter, &parent.path().join("merged"), options, &mut |_, _| ()).unwrap();
    (parent, merged)
}

fn tensors(folder: &Path) -> BTreeMap<String, Tensor> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let is_expected = path.file_name().is_some_and(|name| name == "expected.safetensors");
        if path.extension().is_some_and(|ending| ending == "safetensors") && !is_expected {
            all.extend(candle_core::safetensors::load(path, &Device::Cpu).unwrap());
        }
    }
    all
}

fn config_of(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
}

#[test]
fn sums_are_rounded_once_and_all_else_is_copied_bit_by_bit() {
    // In two shards and with a tied head; in f16.
    for (name, dtype) in [("qwen2-bf16", DType::BF16), ("llama3-f16", DType::F16)] {
        let folder = model_folder(name);
        let model = load(&folder);
        let adapter = random_adapter(&config(&["q_proj", "gate_proj"]), &model, 1);
        let (output, report) = merged(&folder, &adapter, &MergeOptions::default());
        let output = output.path().join("merged");
        let (before, after) = (tensors(&folder), tensors(&output));
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
        assert_eq!((report.tensors, report.changed, report.shards), (before.len(), adapter.layers.len(), 1));
        let mut expected = before.clone();
        for (site, layer) in &adapter.layers {
            let weight = expected.get_mut(&format!("{site}.weight")).unwrap();
            let delta = (layer.lora.b.matmul(&layer.lora.a).unwrap() * f64::from(layer.lora.scale)).unwrap();
            *weight = (weight.to_dtype(DType::F32).unwrap() + delta).unwrap().to_dtype(dtype).unwrap();
        }
        for (name, tensor) in &after {
            assert_eq!(tensor.dtype(), dtype, "{name}");
            let bits = |tensor: &Tensor| {
                tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            assert!(bits(tensor) == bits(&expected[name]), "{name}");
        }
        assert_eq!(config_of(&output), config_of(&folder));
    }
}

#[test]
fn the_type_can_be_chosen() {
    let folder = model_folder("qwen3");
    let model = load(&folder);
    let tokens = prompt(&model, 19);
    let adapter = random_adapter(&LoraConfig { method: Method::Dora, ..config(&["all-linear"]) }, &model, 1);
    let expected = logits(&model, &tokens, Some(&with(&model, &adapter)));
    let kinds = [
        (DType::F32, Precision::F32, "float32"),
        (DType::F16, Precision::F16, "float16"),
        (DType::BF16, Precision::Bf16, "bfloat16"),
    ];
    for (dtype, precision, text) in kinds {
        let options = MergeOptions { dtype: Some(dtype), ..MergeOptions::default() };
        let (output, report) = merged(&folder, &adapter, &options);
        let output = output.path().join("merged");
        assert_eq!(report.bytes, model.spec().parameters() * dtype.size_in_bytes() as u64);
        let config = config_of(&output);
        let key = if config_of(&folder).get("dtype").is_some() { "dtype" } else { "torch_dtype" };
        assert_eq!(config[key], text);
        let merged = load(&output);
        assert_eq!(merged.dtype(), dtype);
        // Every weight is rounded, not only activations.
        assert_close(&logits(&merged, &tokens, None), &expected, tolerance(Gate::Merged, precision), text);
    }
}

#[test]
fn large_models_are_divided_and_progress_reaches_the_end() {
    let folder = model_folder("mistral");
    let model = load(&folder);
    let tokens = prompt(&model, 19);
    let adapter = random_adapter(&config(&["all-linear"]), &model, 1);
    let options = MergeOptions { shard_bytes: 20_000, ..MergeOptions::default() };
    let output = tempfile::tempdir().unwrap();
    let mut steps = Vec::new();
    let report =
        merge(&folder, &adapter, output.path(), &options, &mut |done, total| steps.push((done, total)))
            .unwrap();
    assert!(report.shards > 2, "{report:?}");
    assert!(steps.is_sorted() && steps.last() == Some(&(report.bytes, report.bytes)));
    let index: Value =
        serde_json::from_slice(&fs::read(output.path().join("model.safetensors.index.json")).unwrap())
            .unwrap();
    assert_eq!(index["metadata"]["total_size"], report.bytes);
    assert_eq!(index["weight_map"].as_object().unwrap().len(), report.tensors);
    let last = format!("model-{0:05}-of-{0:05}.safetensors", report.shards);
    assert!(output.path().join(last).is_file());
    let expected = logits(&model, &tokens, Some(&with(&model, &adapter)));
    close(&logits(&load(output.path()), &tokens, None), &expected, Gate::SameModel, "divided");
}

#[test]
fn small_files_come_along() {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden::root().join("models/tiny-chat")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    for name in ["chat_template.jinja", "README.md", "pytorch_model.bin", ".hidden", "model.gguf"] {
        fs::write(folder.path().join(name), name).unwrap();
    }
    fs::create_dir(folder.path().join("onnx")).unwrap();
    let model = load(folder.path());
    let adapter = random_adapter(&config(&["q_proj"]), &model, 1);
    let (output, report) = merged(folder.path(), &adapter, &MergeOptions::default());
    let expected = [
        "README.md",
        "chat_template.jinja",
        "config.json",
        "expected.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(report.copied, expected);
    for name in expected {
        let [before, after] =
            [folder.path(), &output.path().join("merged")].map(|folder| fs::read(folder.join(name)).unwrap());
        assert!(before == after, "{name}");
    }
    assert_eq!(fs::read_dir(output.path()).unwrap().count(), 1);
    assert_eq!(fs::read_dir(output.path().join("merged")).unwrap().count(), expected.len() + 1);
}

#[test]
fn what_cannot_be_merged_leaves_nothing() {
    let folder = tiny_model(&TinyModel { precision: Precision::F16, ..TinyModel::default() });
    let model = load(folder.path());
    let adapter = random_adapter(&config(&["q_proj"]), &model, 1);
    let fails = |folder: &Path, adapter: &Adapter, output: &Path, words: &[&str]| {
        let error =
            merge(folder, adapter, output, &MergeOptions::default(), &mut |_, _| ()).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    let parent = tempfile::tempdir().unwrap();
    let output = parent.path().join("merged");
    let mut large = adapter.clone();
    large.layers.values_mut().for_each(|layer| layer.lora.scale = 1e9);
    fails(
        folder.path(),
        &large,
        &output,
        &["model.layers.0.self_attn.q_proj.weight", "not finite as f16", "f32 or bf16"],
    );
    fails(&model_folder("llama3"), &adapter, &output, &["does not fit the model"]);
    fails(&parent.path().join("nothing"), &adapter, &output, &["nothing", "config.json"]);
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    fs::create_dir(&output).unwrap();
    fs::write(output.join("mine"), "").unwrap();
    fails(folder.path(), &adapter, &output, &["merged: it is not empty"]);
    fails(folder.path(), &adapter, &output.join("mine"), &["it is not a folder"]);
    assert!(output.join("mine").is_file());
}
