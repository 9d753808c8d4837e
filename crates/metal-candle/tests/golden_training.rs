//! Losses, gradients and optimizer steps against PyTorch and PEFT: see `golden/README.md`.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use metal_candle::{
    lora::{Adapter, StoredAdapter},
    model::{Config, LoadOptions, Model, arch, weights::Checkpoint},
    train::{OptimizerConfig, Recompute, Rows, Trainer, TrainerOptions, Update},
};
use metal_candle_kernels::cross_entropy::IGNORED;
use metal_candle_testkit::{
    golden::{self, Floats, Tensors},
    tolerance::{Gate, Precision, assert_close, tolerance},
};
use serde_json::Value;

const METHODS: [&str; 3] = ["lora", "rslora", "dora"];
const MODELS: [&str; 4] = ["llama3", "qwen2", "qwen3", "gemma2"];

/// The batch of a case, its sequences one after another.
struct Batch {
    tokens: Vec<u32>,
    targets: Vec<u32>,
    starts: Vec<u32>,
}

impl Batch {
    fn of(expected: &Tensors) -> Self {
        let mut batch = Self { tokens: Vec::new(), targets: Vec::new(), starts: vec![0] };
        for index in 0..3 {
            batch.tokens.extend(expected.ids(&format!("ids_{index}")));
            let targets = expected.integers(&format!("targets_{index}"));
            batch.targets.extend(targets.iter().map(|&target| u32::try_from(target).unwrap_or(IGNORED)));
            batch.starts.push(batch.tokens.len() as u32);
        }
        batch
    }

    fn rows(&self) -> Rows<'_> {
        Rows { tokens: &self.tokens, targets: &self.targets, starts: &self.starts }
    }
}

#[test]
fn gradients_of_adapters_are_those_of_peft() {
    for (model, method) in cases() {
        let expected = Tensors::open(&format!("training/{model}-{method}/expected.safetensors"));
        let batch = Batch::of(&expected);
        for recompute in [Recompute::NONE, Recompute { blocks: 1, mlps: 1 }, Recompute::ALL] {
            let mut trainer = trainer(model, method, TrainerOptions { recompute, ..options() });
            let loss = trainer.accumulate(&batch.rows(), 0).unwrap();
            let mean = Floats { shape: vec![], values: vec![(loss.sum / loss.targets as f64) as f32] };
            compare(Gate::Loss, &format!("{model}-{method}: loss"), &mean, expected.floats("loss"));
            check_gradients(&format!("{model}-{method}"), &trainer, &expected, loss.targets);
        }
    }
}

#[test]
fn gradients_of_all_weights_are_those_of_pytorch() {
    for model in ["llama3", "qwen3"] {
        let expected = Tensors::open(&format!("training/{model}-full/expected.safetensors"));
        let batch = Batch::of(&expected);
        let folder = golden::model(model).folder;
        let spec = arch::read(&Config::load(&folder).unwrap(), &[]).unwrap();
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let weights = checkpoint.load(&Device::Cpu, Some(DType::F32), &mut |_, _| ()).unwrap();
        let mut trainer = Trainer::full(spec, weights, &Device::Cpu, options()).unwrap();
        let loss = trainer.accumulate(&batch.rows(), 0).unwrap();
        check_gradients(&format!("{model}-full"), &trainer, &expected, loss.targets);
        let count = expected.names().filter(|name| name.starts_with("gradient.")).count();
        assert_eq!(trainer.parameters().entries().count(), count, "{model}");
    }
}

#[test]
fn ten_steps_end_where_peft_ends() {
    for (model, method) in cases() {
        let expected = Tensors::open(&format!("training/{model}-{method}/expected.safetensors"));
        let batch = Batch::of(&expected);
        let mut trainer = trainer(model, method, options());
        let mut losses = Vec::new();
        for number in 1..=10 {
            let loss = trainer.accumulate(&batch.rows(), 0).unwrap();
            losses.push((loss.sum / loss.targets as f64) as f32);
            trainer.update(&Update { number, learning_rate: 1e-3, targets: loss.targets }).unwrap();
        }
        let name = format!("{model}-{method}");
        compare(
            Gate::Loss,
            &name,
            &Floats { shape: vec![10], values: losses },
            expected.floats("steps.losses"),
        );
        check_values(&name, &trainer, &expected, "steps.");
    }
}

#[test]
fn clipping_and_schedules_act_as_in_pytorch() {
    let expected = Tensors::open("training/qwen3-lora/expected.safetensors");
    let batch = Batch::of(&expected);
    let max_gradient_norm = Some(expected.floats("clipped_steps.max_norm").values[0]);
    let optimizer = OptimizerConfig { max_gradient_norm, ..OptimizerConfig::default() };
    let mut trainer = trainer("qwen3", "lora", TrainerOptions { optimizer, ..options() });
    let mut norms = Vec::new();
    for (index, &learning_rate) in expected.floats("clipped_steps.learning_rates").values.iter().enumerate() {
        let loss = trainer.accumulate(&batch.rows(), 0).unwrap();
        let update = Update { number: index as u32 + 1, learning_rate, targets: loss.targets };
        norms.push(trainer.update(&update).unwrap().gradient_norm);
    }
    let norms = Floats { shape: vec![norms.len()], values: norms };
    compare(Gate::ModelBackward, "norms", &norms, expected.floats("clipped_steps.norms"));
    check_values("qwen3-lora, clipped", &trainer, &expected, "clipped_steps.");
}

#[test]
fn a_curve_of_200_steps_is_that_of_peft() {
    let curve = golden::json("training/curve/curve.json");
    let ids = |value: &Value| -> Vec<u32> {
        let id = |id: &Value| id.as_i64().map(|id| u32::try_from(id).unwrap_or(IGNORED)).unwrap();
        value.as_array().unwrap().iter().map(id).collect()
    };
    let number = |key: &str| curve["optimizer"][key].as_f64().unwrap() as f32;
    let optimizer = OptimizerConfig {
        betas: Some([0, 1].map(|index| curve["optimizer"]["betas"][index].as_f64().unwrap() as f32)),
        epsilon: number("eps"),
        weight_decay: number("weight_decay"),
        ..OptimizerConfig::default()
    };
    let folder = golden::root().join(curve["model"].as_str().unwrap());
    let model_options = LoadOptions { dtype: Some(DType::F32), ..LoadOptions::default() };
    let model = Model::load(&folder, &model_options, &mut |_, _| ()).unwrap();
    let adapter = adapter("training/curve/adapter", &model);
    let mut trainer =
        Trainer::lora(Arc::new(model), &adapter, TrainerOptions { optimizer, ..options() }).unwrap();
    let batches = curve["batches"].as_array().unwrap();
    assert_eq!(batches.len(), 200);
    for (step, lines) in batches.iter().enumerate() {
        let mut batch = Batch { tokens: Vec::new(), targets: Vec::new(), starts: vec![0] };
        for line in ids(lines) {
            let line = &curve["lines"][line as usize];
            batch.tokens.extend(ids(&line["ids"]));
            batch.targets.extend(ids(&line["targets"]));
            batch.starts.push(batch.tokens.len() as u32);
        }
        let loss = trainer.accumulate(&batch.rows(), 0).unwrap();
        let update =
            Update { number: step as u32 + 1, learning_rate: number("learning_rate"), targets: loss.targets };
        trainer.update(&update).unwrap();
        let (found, expected) = (loss.sum / loss.targets as f64, curve["losses"][step].as_f64().unwrap());
        let limit = tolerance(Gate::Curve, Precision::F32);
        assert_close(&[found as f32], &[expected as f32], limit, format!("step {}", step + 1));
    }
}

fn cases() -> impl Iterator<Item = (&'static str, &'static str)> {
    MODELS.into_iter().flat_map(|model| METHODS.map(|method| (model, method)))
}

fn options() -> TrainerOptions {
    TrainerOptions::default()
}

fn trainer(model: &str, method: &str, options: TrainerOptions) -> Trainer {
    let folder = golden::model(model).folder;
    let model_options = LoadOptions { dtype: Some(DType::F32), ..LoadOptions::default() };
    let loaded = Model::load(&folder, &model_options, &mut |_, _| ()).unwrap();
    let adapter = adapter(&format!("training/{model}-{method}"), &loaded);
    Trainer::lora(Arc::new(loaded), &adapter, options).unwrap()
}

fn check_gradients(name: &str, trainer: &Trainer, expected: &Tensors, targets: usize) {
    for parameter in trainer.parameters().entries() {
        let found = (trainer.gradient(&parameter.name).unwrap() / targets as f64).unwrap();
        let expected = expected.floats(&format!("gradient.{}", parameter.name));
        compare(Gate::ModelBackward, &format!("{name}: {}", parameter.name), &floats(&found), expected);
    }
}

fn check_values(name: &str, trainer: &Trainer, expected: &Tensors, prefix: &str) {
    for saved in trainer.parameters().state().unwrap() {
        let found = floats(&saved.state.get(0).unwrap());
        let expected = expected.floats(&format!("{prefix}{}", saved.name));
        compare(Gate::TenSteps, &format!("{name}: {}", saved.name), &found, expected);
    }
}

fn floats(tensor: &Tensor) -> Floats {
    let values = tensor.flatten_all().unwrap().to_vec1().unwrap();
    Floats { shape: tensor.dims().to_vec(), values }
}

fn compare(gate: Gate, name: &str, found: &Floats, expected: &Floats) {
    assert_eq!(found.shape, expected.shape, "{name}");
    assert_close(&found.values, &expected.values, tolerance(gate, Precision::F32), name);
}

/// A PEFT folder under `golden`.
fn adapter(folder: &str, model: &Model) -> Adapter {
    StoredAdapter::load(&golden::root().join(folder), Some(model.spec())).unwrap().adapter
}
