//! Stopping and going on.

use std::fs;

use metal_candle::{
    lora::{LoraConfig, Method},
    train::{
        Decay, Optimizer, RunLength, TrainConfig, Training,
        data::Batching,
        events::{Stopped, TrainEvent},
        saved_config,
    },
};

use crate::support::{Bench, adapter_bytes, watch};

/// The result of a run that is stopped after each of these steps and goes on, and of one that is not.
fn stopped_and_whole(bench: &Bench, config: &TrainConfig, stops: &[u64], file: &str) -> (Vec<u8>, Vec<u8>) {
    let whole = TrainConfig { output: bench.output().with_file_name("whole"), ..config.clone() };
    bench.train(&whole);
    let mut run = bench.start(config).unwrap();
    for &stop in stops {
        let (finished, _) = watch(&mut run, stop);
        assert_eq!(finished.unwrap().stopped, Stopped::Interrupted);
        assert_eq!(bench.checkpoints().last(), Some(&stop));
        assert!(!bench.output().join(file).exists());
        run = bench.resume(config).unwrap();
        assert_eq!(run.steps().0, stop);
    }
    assert_eq!(watch(&mut run, u64::MAX).0.unwrap().stopped, Stopped::Complete);
    let read = |config: &TrainConfig| fs::read(config.output.join(file)).unwrap();
    (read(config), read(&whole))
}

#[test]
fn a_stopped_run_ends_with_the_same_bytes() {
    for change in [
        |_: &mut TrainConfig| (),
        |config: &mut TrainConfig| {
            config.accumulation = 2;
            config.schedule.warmup_steps = 3;
            config.schedule.decay = Decay::Cosine { to: 0.0, steps: None };
            config.evaluation.every = Some(2);
            config.optimizer.max_gradient_norm = Some(0.5);
        },
        |config: &mut TrainConfig| {
            config.lora = LoraConfig { method: Method::Dora, ..config.lora.clone() };
            config.data.batching = Batching::Packed;
            config.data.window = 4;
            config.optimizer.name = Optimizer::Lion;
            config.schedule.learning_rate = 1e-3;
        },
    ] {
        let bench = Bench::new();
        let mut config = bench.config();
        change(&mut config);
        let (stopped, whole) = stopped_and_whole(&bench, &config, &[1, 5, 11], "adapter_model.safetensors");
        assert!(stopped == whole);
    }
}

#[test]
fn so_does_one_that_trains_all_weights() {
    let bench = Bench::new();
    let mut config = TrainConfig { method: Training::Full, length: RunLength::Steps(4), ..bench.config() };
    config.schedule.learning_rate = 1e-3;
    let (stopped, whole) = stopped_and_whole(&bench, &config, &[2], "model.safetensors");
    assert!(stopped == whole);
}

#[test]
fn a_run_can_be_made_longer_and_is_then_that_longer_run() {
    let bench = Bench::new();
    let long = TrainConfig { output: bench.output().with_file_name("long"), ..bench.config() };
    bench.train(&long);
    let short = TrainConfig { length: RunLength::Steps(7), ..bench.config() };
    bench.train(&short);
    assert_eq!(saved_config(&bench.output()).unwrap(), short);
    let mut run = bench.resume(&bench.config()).unwrap();
    watch(&mut run, u64::MAX).0.unwrap();
    assert!(adapter_bytes(&bench.output()) == adapter_bytes(&long.output));
}

#[test]
fn early_stopping_and_the_best_step_survive() {
    let bench = Bench::new();
    let mut config = bench.config();
    config.schedule.learning_rate = 0.0;
    config.evaluation.every = Some(1);
    config.evaluation.patience = Some(4);
    let mut run = bench.start(&config).unwrap();
    watch(&mut run, 2).0.unwrap();
    let finished = watch(&mut bench.resume(&config).unwrap(), u64::MAX).0.unwrap();
    assert_eq!((finished.stopped, finished.steps), (Stopped::EarlyStopping, 4));
    assert_eq!(finished.best.unwrap().step, 0);
}

#[test]
fn what_changed_is_named_and_nothing_is_trained() {
    let bench = Bench::new();
    let config = bench.config();
    watch(&mut bench.start(&config).unwrap(), 3).0.unwrap();
    let refused = |config: &TrainConfig| bench.resume(config).unwrap_err().to_string();
    let mut other = config.clone();
    other.lora.rank = 8;
    other.seed = 1;
    let said = refused(&other);
    assert!(said.contains("lora.rank: was 4, is 8") && said.contains("seed: was 0, is 1"), "{said}");
    let shorter = TrainConfig { length: RunLength::Steps(2), ..config.clone() };
    assert!(refused(&shorter).contains("length"), "{}", refused(&shorter));
    let train = bench.data().join("train.jsonl");
    let text = fs::read_to_string(&train).unwrap();
    fs::write(&train, text.replace("boat", "goat")).unwrap();
    assert!(refused(&config).contains("train: the file has other content"), "{}", refused(&config));
    fs::write(&train, text).unwrap();
    // A file that was only touched is the same file.
    assert!(bench.resume(&config).is_ok());
}

#[test]
fn a_folder_belongs_to_one_run() {
    let bench = Bench::new();
    let config = bench.config();
    let said = bench.resume(&config).unwrap_err().to_string();
    assert!(said.contains("no checkpoint") && said.contains("start without resuming"), "{said}");
    watch(&mut bench.start(&config).unwrap(), 3).0.unwrap();
    let said = bench.start(&config).unwrap_err().to_string();
    assert!(said.contains("after step 3") && said.contains("resume it"), "{said}");
}

#[test]
fn damaged_checkpoints_are_passed_over_aloud() {
    let bench = Bench::new();
    let config = TrainConfig { save_every: Some(2), ..bench.config() };
    watch(&mut bench.start(&config).unwrap(), 5).0.unwrap();
    assert_eq!(bench.checkpoints(), [2, 4, 5]);
    let folder = bench.output().join("checkpoints");
    let cut = folder.join("step-000005/training.safetensors");
    let length = fs::metadata(&cut).unwrap().len();
    fs::File::options().write(true).open(&cut).unwrap().set_len(length - 1).unwrap();
    fs::write(folder.join("step-000004/state.json"), "{").unwrap();
    // What a kill leaves behind.
    let partial = folder.join(".step-000006.1.partial");
    fs::create_dir(&partial).unwrap();
    let mut run = bench.resume(&config).unwrap();
    assert_eq!(run.steps().0, 2);
    assert!(!partial.exists());
    let (_, events) = watch(&mut run, u64::MAX);
    let notices: Vec<&str> = events
        .iter()
        .filter_map(|event| match event {
            TrainEvent::Notice(notice) => Some(notice.text.as_str()),
            _ => None,
        })
        .collect();
    assert!(notices.iter().any(|text| text.contains("step-000005") && text.contains("training.safetensors")));
    assert!(notices.iter().any(|text| text.contains("step-000004") && text.contains("state.json")));
    let whole = TrainConfig { output: bench.output().with_file_name("whole"), ..config.clone() };
    bench.train(&whole);
    assert!(adapter_bytes(&bench.output()) == adapter_bytes(&whole.output));
}
