//! Whole runs on a tiny model: what is written, what is told, and that a run that was stopped ends as if it had not been.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "train_run/resume.rs"]
mod resume;
#[path = "train_run/settings.rs"]
mod settings;
#[path = "train_run/support.rs"]
mod support;

use std::fs;

use metal_candle::{
    lora::StoredAdapter,
    model::LoadOptions,
    train::{
        Plan, RunLength, TrainConfig, Training,
        events::{Speaker, Split, Stopped, TrainEvent},
    },
};
use support::{Bench, adapter_bytes};

#[test]
fn a_run_learns_and_leaves_an_adapter_that_loads() {
    let bench = Bench::new();
    let (finished, events) = bench.train(&bench.config());
    assert_eq!((finished.steps, finished.stopped), (12, Stopped::Complete));
    let losses: Vec<f64> = events
        .iter()
        .filter_map(|event| match event {
            TrainEvent::Step(step) => Some(step.loss),
            _ => None,
        })
        .collect();
    assert_eq!(losses.len(), 12);
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    assert!(mean(&losses[8..]) < 0.9 * mean(&losses[..4]), "{losses:?}");
    let stored = StoredAdapter::load(&bench.output(), Some(bench.model.model().spec())).unwrap();
    assert_eq!(stored.base_model.as_deref(), Some("tiny-chat"));
    assert_eq!(stored.adapter.parameters(), bench.trainable(&events));
}

#[test]
fn events_come_in_their_order() {
    let bench = Bench::new();
    let mut config = bench.config();
    config.length = RunLength::Steps(4);
    config.evaluation.every = Some(2);
    config.evaluation.test = true;
    config.save_every = Some(2);
    config.samples.prompts = vec!["Hello".to_owned()];
    config.samples.every = Some(2);
    config.samples.max_tokens = 3;
    let (finished, events) = bench.train(&config);
    let story: Vec<String> = events
        .iter()
        .map(|event| match event {
            TrainEvent::Started(started) => format!("started of {}", started.total_steps),
            TrainEvent::Step(step) => format!("step {}", step.step),
            TrainEvent::Evaluation(found) if found.split == Split::Test => format!("test {}", found.step),
            TrainEvent::Evaluation(found) => format!("measured {}", found.step),
            TrainEvent::Sample(sample) if sample.speaker == Speaker::Base => format!("base {}", sample.step),
            TrainEvent::Sample(sample) => format!("sample {}", sample.step),
            TrainEvent::Checkpoint(saved) => format!("saved {}", saved.step),
            TrainEvent::Notice(_) => "notice".to_owned(),
            TrainEvent::Finished(finished) => format!("finished {}", finished.steps),
        })
        .collect();
    let expected = [
        "started of 4",
        "base 0",
        "measured 0",
        "step 1",
        "step 2",
        "measured 2",
        "sample 2",
        "saved 2",
        "step 3",
        "step 4",
        "measured 4",
        "saved 4",
        "test 4",
        "sample 4",
        "finished 4",
    ];
    let without_notices: Vec<&String> = story.iter().filter(|line| *line != "notice").collect();
    assert_eq!(without_notices, expected);
    assert!(finished.best.is_some());
}

#[test]
fn the_loss_of_a_measurement_is_that_of_the_model_before_training() {
    let bench = Bench::new();
    let mut config = bench.config();
    // `eval` measures files as they are.
    config.data.append_end = false;
    let (_, events) = bench.train(&config);
    let first = events.iter().find_map(|event| match event {
        TrainEvent::Evaluation(found) => Some(found.loss),
        _ => None,
    });
    let text = fs::read(bench.data().join("valid.jsonl")).unwrap();
    let report =
        metal_candle::eval::evaluate(&bench.model, "valid", &text[..], None, None, &mut |_| ()).unwrap();
    assert!((first.unwrap() - report.loss).abs() < 1e-5 * report.loss, "{first:?} {}", report.loss);
}

#[test]
fn all_weights_can_be_trained_and_are_written_as_a_model() {
    let bench = Bench::new();
    let mut config = bench.config();
    config.method = Training::Full;
    config.schedule.learning_rate = 1e-3;
    let (finished, events) = bench.train(&config);
    assert_eq!(finished.stopped, Stopped::Complete);
    let options = LoadOptions::default();
    let trained = metal_candle::LanguageModel::load(&bench.output(), &options, &mut |_, _| ()).unwrap();
    assert_eq!(bench.trainable(&events), trained.model().spec().parameters());
    let losses = |model: &metal_candle::LanguageModel| {
        let text = fs::read(bench.data().join("train.jsonl")).unwrap();
        metal_candle::eval::evaluate(model, "train", &text[..], None, None, &mut |_| ()).unwrap().loss
    };
    assert!(losses(&trained) < 0.95 * losses(&bench.model));
}

#[test]
fn a_run_ends_early_when_nothing_gets_better() {
    let bench = Bench::new();
    let mut config = bench.config();
    config.length = RunLength::Steps(50);
    config.schedule.learning_rate = 0.0;
    config.evaluation.every = Some(1);
    config.evaluation.patience = Some(3);
    let (finished, _) = bench.train(&config);
    assert_eq!((finished.stopped, finished.steps), (Stopped::EarlyStopping, 3));
    assert_eq!(finished.best.unwrap().step, 0);
    assert!(bench.output().join("adapter_model.safetensors").exists());
}

#[test]
fn the_last_checkpoints_and_the_best_are_kept() {
    let bench = Bench::new();
    let mut config = bench.config();
    config.save_every = Some(1);
    config.keep_last = Some(2);
    config.length = RunLength::Steps(6);
    // Only the third step learns; after it, nothing gets better.
    config.schedule.decay = metal_candle::train::Decay::Stairs { rate: 0.0, every: 3 };
    config.evaluation.every = Some(1);
    let (finished, _) = bench.train(&config);
    let best = finished.best.unwrap().step;
    assert!(best <= 3, "{best}");
    let mut expected = vec![best, 5, 6];
    expected.dedup();
    assert_eq!(bench.checkpoints(), expected);
}

#[test]
fn what_is_not_finite_stops_the_run_with_the_last_good_state() {
    let bench = Bench::new();
    let mut config = bench.config();
    // After three good steps, one that leaves all bounds.
    config.schedule = metal_candle::train::Schedule {
        learning_rate: 1e-3,
        decay: metal_candle::train::Decay::Stairs { rate: 1e38, every: 3 },
        ..config.schedule
    };
    config.optimizer.name = metal_candle::train::Optimizer::Sgd;
    let (error, events) = bench.fail(&config);
    assert!(error.contains("is not finite (lines "), "{error}");
    assert!(error.contains("learning rate"), "{error}");
    assert!(matches!(events.last(), Some(TrainEvent::Finished(end)) if end.stopped == Stopped::NotFinite));
    assert!(!bench.output().join("adapter_model.safetensors").exists());
}

#[test]
fn a_plan_counts_without_training() {
    let bench = Bench::new();
    let config = TrainConfig { length: RunLength::Epochs(2.0), ..bench.config() };
    let plan = Plan::new(&bench.model, &config, &mut |_, _| ()).unwrap();
    assert_eq!((plan.examples, plan.batches, plan.steps), (8, 4, 8));
    assert!(plan.targets > 0 && plan.targets < plan.tokens);
    assert!((plan.epochs - 2.0).abs() < 1e-9 && plan.seconds > 0.0);
    assert!(!bench.output().exists(), "a plan writes nothing");
    let (_, events) = bench.train(&config);
    assert_eq!(plan.parameters.1, bench.trainable(&events));
    let steps = events.iter().filter(|event| matches!(event, TrainEvent::Step(_))).count();
    assert_eq!(steps as u64, plan.steps);
}

#[test]
fn an_adapter_can_be_trained_further() {
    let bench = Bench::new();
    bench.train(&bench.config());
    let first = adapter_bytes(&bench.output());
    let other = tempfile::tempdir().unwrap();
    let mut config = bench.config();
    config.output = other.path().join("second");
    config.initial_adapter = Some(bench.output().join("adapter_model.safetensors"));
    config.schedule.learning_rate = 0.0;
    bench.train(&config);
    assert_eq!(adapter_bytes(&config.output), first);
}
