//! `--trace FILE`: what is in the file, and what is said.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;

use crate::{
    support::{finish, path_text, program, run, tiny_chat},
    train,
};

struct Trace(Value);

impl Trace {
    fn read(path: &Path) -> Self {
        Self(serde_json::from_slice(&fs::read(path).unwrap()).unwrap())
    }

    fn events(&self, phase: &str) -> impl Iterator<Item = &Value> {
        self.0["traceEvents"].as_array().unwrap().iter().filter(move |event| event["ph"] == phase)
    }

    /// How long each span of a name took.
    fn durations(&self) -> BTreeMap<&str, Vec<f64>> {
        let mut durations: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for span in self.events("X") {
            let name = span["name"].as_str().unwrap();
            durations.entry(name).or_default().push(span["dur"].as_f64().unwrap());
        }
        durations
    }

    fn median(&self, name: &str) -> f64 {
        let mut durations = self.durations()[name].clone();
        durations.sort_by(f64::total_cmp);
        durations[durations.len() / 2]
    }

    fn has(&self, names: &[&str]) {
        let durations = self.durations();
        for name in names {
            assert!(durations.contains_key(name), "{name} is missing among {:?}", durations.keys());
        }
    }

    /// A span ends before those around it, on each thread.
    fn nests(&self) {
        let mut ends: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for span in self.events("X") {
            let (start, duration) = (span["ts"].as_f64().unwrap(), span["dur"].as_f64().unwrap());
            let around = ends.entry(span["tid"].as_u64().unwrap()).or_default();
            around.retain(|end| *end > start);
            // Nanoseconds as fractions of microseconds are rounded.
            assert!(around.iter().all(|end| start + duration <= end + 0.002), "{span} in {around:?}");
            around.push(start + duration);
        }
    }
}

fn generate<'a>(model: &'a str, trace: &'a str) -> Vec<&'a str> {
    let fixed = ["generate", "-m", model, "--raw", "--prompt", "Once there was", "-n", "8", "--ignore-eos"];
    fixed.into_iter().chain(["--device", "cpu", "--trace", trace]).collect()
}

#[test]
fn a_trace_of_generation_shows_every_op() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.json");
    let outcome = run(&generate(&tiny_chat(), &path_text(&path))).ok();
    for words in ["share", "GB/s", "GFLOP/s", "linear", "trace: ", "ui.perfetto.dev"] {
        assert!(outcome.err.contains(words), "{words}: {}", outcome.err);
    }
    let trace = Trace::read(&path);
    trace.has(&[
        "load_model",
        "load_weights",
        "tokenizer",
        "engine_step",
        "forward",
        "layer",
        "attention_half",
    ]);
    trace.has(&["mlp_half", "head", "logits_to_host", "sampling", "detokenizer"]);
    trace.has(&["embedding", "rms_norm", "add_rms_norm", "linear", "gated_linear", "rope", "attention"]);
    trace.nests();
    assert_eq!(trace.durations()["engine_step"].len(), 8);
    let layers: Vec<_> = trace.events("X").filter(|span| span["name"] == "layer").collect();
    assert_eq!((&layers[0]["args"]["index"], &layers[1]["args"]["index"]), (&0.into(), &1.into()));
    assert!(layers.iter().all(|layer| layer["args"]["launches"].as_u64().unwrap() > 5));
    let linear = trace.events("X").find(|span| span["name"] == "linear").unwrap();
    for key in ["bytes", "flops", "GB/s", "GFLOP/s"] {
        assert!(linear["args"][key].as_f64().unwrap() > 0.0, "{key}: {linear}");
    }
    assert!(trace.events("M").any(|event| event["name"] == "thread_name" && event["args"]["name"] == "main"));
    assert!(trace.events("C").any(|event| event["name"] == "launches"));
    assert_eq!(trace.0["otherData"]["dropped"], 0);
}

#[test]
fn a_trace_of_training_shows_every_op() {
    let folder = train::bench();
    let path = folder.path().join("trace.json");
    let text = path_text(&path);
    let more = ["--iters", "3", "--save-every", "2", "--trace", &text];
    let command = train::command(folder.path(), "out", &more);
    run(&command.iter().map(String::as_str).collect::<Vec<_>>()).ok();
    let trace = Trace::read(&path);
    trace.has(&["train_step", "wait_for_batch", "batch", "accumulate", "forward", "optimizer", "checkpoint"]);
    trace.has(&["layer", "layer_backward", "attention_half_backward", "mlp_half_backward", "evaluation"]);
    trace.has(&["packed_attention_forward", "packed_attention_backward", "lm_head_loss_and_gradients"]);
    trace.has(&[
        "lora_down",
        "lora_up_in_place",
        "lora_backward",
        "dropout",
        "linear_backward",
        "gated_backward",
    ]);
    trace.has(&["rms_norm_backward", "rope_backward", "gradient_norm", "optimizer_update"]);
    trace.nests();
    assert_eq!(trace.durations()["train_step"].len(), 3);
    assert!(trace.events("M").any(|event| event["args"]["name"] == "training-data"));
}

#[test]
fn a_planted_slow_op_is_the_slow_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.json");
    let (model, text) = (tiny_chat(), path_text(&path));
    let mut command = program(&generate(&model, &text));
    command.env("METAL_CANDLE_PLANT_SLOW", "rope=1000");
    finish(command, "").ok();
    let trace = Trace::read(&path);
    assert!(trace.median("rope") > 20.0 * trace.median("add_rms_norm"), "{:?}", trace.durations());

    let mut command = program(&["doctor"]);
    command.env("METAL_CANDLE_PLANT_SLOW", "rope=1000");
    finish(command, "").fails(1, &["METAL_CANDLE_PLANT_SLOW", "--trace FILE"]);
}

#[test]
fn a_failed_command_leaves_its_trace() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.json");
    run(&generate("/nonexistent", &path_text(&path))).fails(1, &["/nonexistent"]);
    assert_eq!(Trace::read(&path).events("M").count(), 1);
}

#[test]
fn a_file_that_cannot_be_written_is_refused_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = path_text(&folder.path().join("none/trace.json"));
    run(&["doctor", "--trace", &nowhere]).fails(1, &["none/trace.json", "a folder that exists"]);
    run(&["doctor", "--trace", &path_text(folder.path())]).fails(1, &["is a folder"]);
}
