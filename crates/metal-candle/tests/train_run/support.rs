//! A tiny model, a little data, and runs of them.

use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

use metal_candle::{
    LanguageModel, Result,
    lora::{LoraConfig, Scaling},
    model::LoadOptions,
    train::{
        DataConfig, EvaluationConfig, Run, RunLength, Schedule, TrainConfig,
        events::{Finished, TrainEvent},
    },
};
use metal_candle_testkit::golden;
use serde_json::json;
use tempfile::TempDir;

pub(crate) struct Bench {
    folder: TempDir,
    pub(crate) model: Arc<LanguageModel>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = golden::root().join("models/tiny-chat");
        let model = LanguageModel::load(&source, &LoadOptions::default(), &mut |_, _| ()).unwrap();
        let bench = Self { folder, model: Arc::new(model) };
        fs::create_dir(bench.data()).unwrap();
        let names = ["boat", "house", "river", "garden", "window", "teacher", "mountain", "letter"];
        let line =
            |name: &str| json!({ "prompt": "Once there was", "completion": format!(" a small {name}.") });
        let lines = |names: &[&str]| names.iter().map(|name| format!("{}\n", line(name))).collect::<String>();
        fs::write(bench.data().join("train.jsonl"), lines(&names)).unwrap();
        fs::write(bench.data().join("valid.jsonl"), lines(&["horse", "bridge"])).unwrap();
        fs::write(bench.data().join("test.jsonl"), lines(&["tree"])).unwrap();
        bench
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub(crate) fn output(&self) -> PathBuf {
        self.folder.path().join("output")
    }

    /// Twelve steps of two examples.
    pub(crate) fn config(&self) -> TrainConfig {
        TrainConfig {
            model: "tiny-chat".to_owned(),
            lora: LoraConfig {
                targets: vec!["all-linear".to_owned()],
                rank: 4,
                scaling: Scaling::Alpha(8.0),
                dropout: 0.1,
                ..LoraConfig::default()
            },
            data: DataConfig {
                path: self.data(),
                batch_size: 2,
                max_seq_length: 64,
                ..DataConfig::default()
            },
            schedule: Schedule::constant(2e-2),
            length: RunLength::Steps(12),
            evaluation: EvaluationConfig { every: None, ..EvaluationConfig::default() },
            output: self.output(),
            save_every: None,
            ..TrainConfig::default()
        }
    }

    pub(crate) fn start(&self, config: &TrainConfig) -> Result<Run> {
        Run::new(Arc::clone(&self.model), config.clone(), &mut |_, _| ())
    }

    pub(crate) fn resume(&self, config: &TrainConfig) -> Result<Run> {
        Run::resume(Arc::clone(&self.model), config.clone(), &mut |_, _| ())
    }

    pub(crate) fn train(&self, config: &TrainConfig) -> (Finished, Vec<TrainEvent>) {
        let (outcome, events) = watch(&mut self.start(config).unwrap(), u64::MAX);
        (outcome.unwrap(), events)
    }

    pub(crate) fn fail(&self, config: &TrainConfig) -> (String, Vec<TrainEvent>) {
        let (outcome, events) = watch(&mut self.start(config).unwrap(), u64::MAX);
        (outcome.unwrap_err().to_string(), events)
    }

    /// The steps that have a checkpoint.
    pub(crate) fn checkpoints(&self) -> Vec<u64> {
        let mut steps: Vec<u64> = fs::read_dir(self.output().join("checkpoints"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .map(|name| name.strip_prefix("step-").unwrap().parse().unwrap())
            .collect();
        steps.sort_unstable();
        steps
    }

    pub(crate) fn trainable(&self, events: &[TrainEvent]) -> u64 {
        let TrainEvent::Started(started) = &events[0] else { panic!("{:?}", events[0]) };
        started.trainable
    }
}

/// Runs, and asks to stop at a step.
pub(crate) fn watch(run: &mut Run, stop_at: u64) -> (Result<Finished>, Vec<TrainEvent>) {
    let mut events = Vec::new();
    let outcome = run.run(&mut |event: &TrainEvent| {
        events.push(event.clone());
        let stop = matches!(event, TrainEvent::Step(step) if step.step >= stop_at);
        Ok(if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    });
    (outcome, events)
}

pub(crate) fn adapter_bytes(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("adapter_model.safetensors")).unwrap()
}
