//! Models, adapters with random matrices, and runs of both.

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use metal_candle::{
    lora::{ActiveAdapter, Adapter, LoraConfig},
    model::{LoadOptions, LogitsFor, Model, SequenceInput},
};
use metal_candle_testkit::{
    golden,
    random::Random,
    tolerance::{Gate, Precision, assert_close, tolerance},
};

pub(crate) fn model_folder(name: &str) -> PathBuf {
    golden::model(name).folder
}

pub(crate) fn load(folder: &std::path::Path) -> Model {
    let options = LoadOptions { device: Device::Cpu, ..LoadOptions::default() };
    Model::load(folder, &options, &mut |_, _| ()).unwrap()
}

pub(crate) fn model(name: &str) -> Model {
    load(&model_folder(name))
}

pub(crate) fn config(targets: &[&str]) -> LoraConfig {
    LoraConfig {
        targets: targets.iter().map(|&target| target.to_owned()).collect(),
        rank: 4,
        ..LoraConfig::default()
    }
}

/// As after training: nothing in it is zero, and it plainly changes what the model says.
pub(crate) fn random_adapter(config: &LoraConfig, model: &Model, seed: u64) -> Adapter {
    let mut adapter = Adapter::initial(config, model, seed).unwrap();
    let mut random = Random::new(seed);
    for layer in adapter.layers.values_mut() {
        let count = layer.lora.b.elem_count();
        let values = random.normal(count, 0.0, 0.2);
        layer.lora.b = Tensor::from_vec(values, layer.lora.b.dims(), &Device::Cpu).unwrap();
        if let Some(magnitude) = &mut layer.magnitude {
            let factors = random.uniform(magnitude.elem_count(), 0.5..1.5);
            let factors = Tensor::from_vec(factors, magnitude.dims(), &Device::Cpu).unwrap();
            *magnitude = (&*magnitude * factors).unwrap();
        }
    }
    adapter
}

/// Logits of a whole prompt.
pub(crate) fn logits(model: &Model, tokens: &[u32], adapter: Option<&ActiveAdapter>) -> Vec<f32> {
    let mut cache = model.new_cache();
    let input = SequenceInput { tokens, cache: &mut cache, logits: LogitsFor::All, adapter };
    floats(&model.forward(&mut [input]).unwrap())
}

pub(crate) fn with(model: &Model, adapter: &Adapter) -> ActiveAdapter {
    ActiveAdapter::new(adapter, model).unwrap()
}

pub(crate) fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn prompt(model: &Model, length: usize) -> Vec<u32> {
    Random::new(7).ids(length, u32::try_from(model.spec().vocab_size).unwrap())
}

#[track_caller]
pub(crate) fn close(found: &[f32], expected: &[f32], gate: Gate, what: impl std::fmt::Display) {
    assert_close(found, expected, tolerance(gate, Precision::F32), what);
}

/// The opposite of close: a test that could not fail would compare what an adapter does not change.
#[track_caller]
pub(crate) fn differs(found: &[f32], expected: &[f32], what: impl std::fmt::Display) {
    let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let difference =
        found.iter().zip(expected).fold(0f32, |most, (left, right)| most.max((left - right).abs()));
    assert!(difference > 0.01 * largest, "{what}: only {difference} of {largest}");
}

/// Every matrix with its place, bit by bit.
pub(crate) fn bits(adapter: &Adapter) -> Vec<(String, Vec<u32>)> {
    let mut all = Vec::new();
    for (site, layer) in &adapter.layers {
        let mut add = |name: &str, tensor: &Tensor| {
            let bits = floats(tensor).into_iter().map(f32::to_bits).collect();
            all.push((format!("{site} {name} {:?} {:?}", tensor.dtype(), tensor.dims()), bits));
        };
        add("A", &layer.lora.a);
        add("B", &layer.lora.b);
        if let Some(magnitude) = &layer.magnitude {
            add("magnitude", magnitude);
        }
        all.push((format!("{site} scale"), vec![layer.lora.scale.to_bits()]));
    }
    all
}
