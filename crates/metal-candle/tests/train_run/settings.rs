//! Every setting acts.

use std::fs;

use metal_candle::{
    data::{CompletionForm, Supervise},
    lora::{Initialisation, Method, Scaling},
    train::{AdapterFormat, Decay, Optimizer, RecomputeChoice, RunLength, TrainConfig, data::Batching},
};
use serde_json::json;

use crate::support::{Bench, adapter_bytes};

type Change = (&'static str, fn(&mut TrainConfig));

fn result(change: fn(&mut TrainConfig)) -> Vec<u8> {
    let bench = Bench::new();
    let mut config = bench.config();
    config.length = RunLength::Steps(3);
    change(&mut config);
    bench.train(&config);
    adapter_bytes(&bench.output())
}

#[test]
fn settings_of_the_training_change_its_result() {
    let base = result(|_| ());
    assert!(base == result(|_| ()), "the same settings give the same bytes");
    let changes: [Change; 28] = [
        ("lora.method", |config| config.lora.method = Method::Dora),
        ("lora.targets", |config| config.lora.targets = vec!["q_proj".to_owned()]),
        ("lora.rank", |config| config.lora.rank = 2),
        ("lora.scaling", |config| config.lora.scaling = Scaling::Factor(3.0)),
        ("lora.dropout", |config| config.lora.dropout = 0.0),
        ("lora.last_layers", |config| config.lora.last_layers = Some(1)),
        ("lora.rank_pattern", |config| config.lora.rank_pattern = [("q_proj".to_owned(), 3)].into()),
        ("lora.alpha_pattern", |config| config.lora.alpha_pattern = [("q_proj".to_owned(), 3.0)].into()),
        ("lora.initialisation", |config| config.lora.initialisation = Initialisation::Gaussian),
        ("data.supervise", |config| config.data.supervise = Supervise::All),
        ("data.completion", |config| config.data.completion = CompletionForm::Chat),
        ("data.append_end", |config| config.data.append_end = false),
        ("data.batch_size", |config| config.data.batch_size = 1),
        ("data.max_seq_length", |config| config.data.max_seq_length = 10),
        ("data.shuffle", |config| config.data.shuffle = false),
        ("data.batching", |config| config.data.batching = Batching::Packed),
        ("optimizer.name", |config| config.optimizer.name = Optimizer::Sgd),
        ("optimizer.betas", |config| config.optimizer.betas = Some([0.5, 0.9])),
        ("optimizer.epsilon", |config| config.optimizer.epsilon = 0.1),
        ("optimizer.weight_decay", |config| config.optimizer.weight_decay = 0.5),
        ("optimizer.b_rate", |config| config.optimizer.b_rate = 4.0),
        ("optimizer.max_gradient_norm", |config| {
            config.optimizer.max_gradient_norm = Some(1e-3);
            config.optimizer.epsilon = 1e-2;
        }),
        ("schedule", |config| config.schedule.decay = Decay::Linear { to: 0.0, steps: None }),
        ("length", |config| config.length = RunLength::Steps(2)),
        ("accumulation", |config| config.accumulation = 2),
        ("label_smoothing", |config| config.label_smoothing = 0.2),
        ("z_loss", |config| config.z_loss = 0.1),
        ("seed", |config| config.seed = 1),
    ];
    for (name, change) in changes {
        assert!(result(change) != base, "{name} does nothing");
    }
}

#[test]
fn settings_of_memory_do_not() {
    let base = result(|_| ());
    for choice in [
        RecomputeChoice::None,
        RecomputeChoice::All,
        RecomputeChoice::Blocks(1),
        RecomputeChoice::Mlps(1),
        RecomputeChoice::Within(1),
        RecomputeChoice::Auto,
    ] {
        let bench = Bench::new();
        let config = TrainConfig { length: RunLength::Steps(3), recompute: choice, ..bench.config() };
        bench.train(&config);
        assert!(adapter_bytes(&bench.output()) == base, "{choice:?}");
    }
}

#[test]
fn windows_decide_which_examples_are_packed_together() {
    let with = |window| {
        let bench = Bench::new();
        let mut config = TrainConfig { length: RunLength::Steps(3), ..bench.config() };
        config.data.batching = Batching::Padded;
        config.data.window = window;
        bench.train(&config);
        adapter_bytes(&bench.output())
    };
    assert!(with(2) != with(8));
}

#[test]
fn the_format_decides_the_files() {
    let bench = Bench::new();
    let config = TrainConfig { format: AdapterFormat::Mlx, ..bench.config() };
    bench.train(&config);
    assert!(bench.output().join("adapters.safetensors").exists());
    assert!(!bench.output().join("adapter_model.safetensors").exists());
}

#[test]
fn bad_lines_are_refused_or_passed_over() {
    let bench = Bench::new();
    let path = bench.data().join("train.jsonl");
    let good = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{good}nonsense\n")).unwrap();
    let mut config = bench.config();
    let said = bench.start(&config).unwrap_err().to_string();
    assert!(said.contains("line 9"), "{said}");
    config.data.skip_bad = true;
    bench.train(&config);
}

#[test]
fn what_cannot_be_meant_is_refused_before_anything_is_written() {
    let bench = Bench::new();
    let refused = |change: fn(&mut TrainConfig), words: &str| {
        let mut config = bench.config();
        change(&mut config);
        let said = bench.start(&config).unwrap_err().to_string();
        assert!(said.contains(words), "{words}: {said}");
        assert!(!bench.output().exists(), "{words}");
    };
    refused(|config| config.length = RunLength::Steps(0), "length is 0 steps");
    refused(|config| config.length = RunLength::Epochs(f64::NAN), "length is NaN epochs");
    refused(|config| config.accumulation = 0, "accumulation is 0");
    refused(|config| config.save_every = Some(0), "save_every is 0");
    refused(|config| config.keep_last = Some(0), "keep_last is 0");
    refused(|config| config.evaluation.every = Some(0), "evaluation.every is 0");
    refused(|config| config.samples.max_tokens = 0, "samples.max_tokens is 0");
    refused(|config| config.label_smoothing = 1.0, "label_smoothing is 1");
    refused(|config| config.z_loss = -1.0, "z_loss is -1");
    refused(|config| config.lora.rank = 0, "rank is 0");
    refused(|config| config.schedule.learning_rate = -1.0, "learning_rate is -1");
    refused(|config| config.optimizer.epsilon = 0.0, "epsilon is 0");
    refused(|config| config.data.path = "/nonexistent".into(), "/nonexistent");
    let alone = bench.data().join("train.jsonl");
    let mut config = bench.config();
    config.data.path = alone;
    config.evaluation.patience = Some(2);
    assert!(bench.start(&config).unwrap_err().to_string().contains("valid.jsonl"));
}

#[test]
fn configs_are_read_strictly_and_come_back() {
    let config = TrainConfig { length: RunLength::Epochs(1.5), ..TrainConfig::default() };
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<TrainConfig>(&text).unwrap(), config);
    for wrong in [json!({ "sead": 1 }), json!({ "data": { "batchsize": 1 } }), json!({ "lora": { "r": 1 } })]
    {
        assert!(serde_json::from_value::<TrainConfig>(wrong).is_err());
    }
}
