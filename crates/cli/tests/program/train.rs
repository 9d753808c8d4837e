//! `train`, as a user runs it: files of settings, dry runs, results, interruptions.

use std::{fs, path::Path};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{file, path_text, run, tiny_chat};

/// A folder with a little data, in which runs may write.
pub(crate) fn bench() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    let names = ["boat", "house", "river", "garden", "window", "teacher", "mountain", "letter"];
    let line = |name: &str| json!({ "prompt": "Once there was", "completion": format!(" a small {name}.") });
    let lines = |names: &[&str]| names.iter().map(|name| format!("{}\n", line(name))).collect::<String>();
    fs::write(data.join("train.jsonl"), lines(&names)).unwrap();
    fs::write(data.join("valid.jsonl"), lines(&["horse", "bridge"])).unwrap();
    folder
}

/// A command line that trains in the folder.
pub(crate) fn command(folder: &Path, output: &str, more: &[&str]) -> Vec<String> {
    let paths = ["data", output].map(|name| path_text(&folder.join(name)));
    let model = tiny_chat();
    let fixed = ["train", "-m", &model, "--data", &paths[0], "--adapter-path", &paths[1], "--device", "cpu"];
    let small = ["--batch-size", "2", "--learning-rate", "2e-2", "--rank", "4", "--dropout", "0.1"];
    fixed.iter().chain(&small).chain(more).map(|&word| word.to_owned()).collect()
}

fn words(command: &[String]) -> Vec<&str> {
    command.iter().map(String::as_str).collect()
}

#[test]
fn a_run_writes_an_adapter_that_generate_takes() {
    let folder = bench();
    let outcome = run(&words(&command(folder.path(), "out", &["--iters", "8", "--sample", "Hello"]))).ok();
    let out = folder.path().join("out");
    assert_eq!(outcome.out, format!("{}\n", out.display()));
    assert!(outcome.err.contains("before training  Hello >"), "{}", outcome.err);
    for name in
        ["adapter_model.safetensors", "adapter_config.json", "metrics.jsonl", "report.html", "loss.png"]
    {
        assert!(out.join(name).exists(), "{name}");
    }
    let (model, adapter) = (tiny_chat(), path_text(&out));
    let ask = |more: &[&str]| {
        let fixed =
            ["generate", "-m", &model, "--raw", "--prompt", "Once there was", "-n", "8", "--temp", "0"];
        run(&fixed.iter().chain(more).copied().collect::<Vec<_>>()).ok().out
    };
    assert_ne!(ask(&[]), ask(&["--adapter", &adapter]));
    // The checkpoint of a step is an adapter too.
    let checkpoint = path_text(&out.join("checkpoints/step-000008"));
    assert_eq!(ask(&["--adapter", &checkpoint]), ask(&["--adapter", &adapter]));
}

#[test]
fn a_file_says_what_flags_say_and_flags_stand_above_it() {
    let folder = bench();
    let (_file, path) = file(
        "config.yaml",
        "fine_tune_type: dora\noptimizer: adamw\niters: 40\nsteps_per_eval: 5\ngrad_accumulation_steps: 2\n\
         lora_parameters: {keys: [self_attn.q_proj], scale: 2.0}\nlr_schedule: {name: cosine_decay, arguments: [0.02, 30]}\n\
         val_batches: -1\nmask_prompt: true\ngrad_checkpoint: true\nnum_layers: -1\n",
    );
    let more =
        ["-c", &path, "--iters", "20", "--dry-run", "--json", "--format", "mlx", "--warmup-steps", "0"];
    // --warmup-steps and lr_schedule cannot both be.
    run(&words(&command(folder.path(), "out", &more))).fails(1, &["warmup_steps and lr_schedule"]);
    let plan = run(&words(&command(folder.path(), "out", &more[..8]))).json();
    let config = &plan["config"];
    let expected = [
        ("/length", json!({ "steps": 10 })),
        ("/accumulation", json!(2)),
        ("/evaluation/every", json!(2)),
        ("/evaluation/batches", Value::Null),
        ("/lora/method", json!("dora")),
        ("/lora/targets", json!(["self_attn.q_proj"])),
        ("/lora/rank", json!(4)),
        ("/lora/scaling", json!({ "factor": 2.0 })),
        ("/lora/last_layers", Value::Null),
        ("/optimizer/name", json!("adamw")),
        ("/schedule/decay", json!({ "cosine": { "to": 0.0, "steps": 30 } })),
        ("/data/supervise", json!("last-turn")),
        ("/recompute", json!("all")),
        ("/format", json!("mlx")),
    ];
    for (path, value) in expected {
        assert_eq!(config.pointer(path), Some(&value), "{path}: {config:#}");
    }
    assert_eq!(plan["plan"]["steps"], 10);
    assert!(plan["memory_bytes"].as_u64().unwrap() > 0);
    assert!(!folder.path().join("out").exists());
}

#[test]
fn a_dry_run_says_what_will_happen() {
    let folder = bench();
    let said = run(&words(&command(folder.path(), "out", &["--epochs", "3", "--dry-run"]))).ok().out;
    for part in [
        "\"learning_rate\": 0.02",
        "steps         12 (3.00 epochs of 4 batches)",
        "supervised",
        "peak memory",
        "time",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn mistakes_are_named() {
    let folder = bench();
    let fails = |more: &[&str], parts: &[&str]| {
        run(&words(&command(folder.path(), "out", more))).fails(1, parts);
        assert!(!folder.path().join("out").exists(), "{more:?}");
    };
    let (_file, path) = file("config.yaml", "seed: 1\nlearning_rte: 1e-5\n");
    fails(&["-c", &path], &["config.yaml", "line 2", "did you mean `learning_rate`?"]);
    fails(&["--optimizer", "muon"], &["muon is not supported; use adamw"]);
    fails(&["--targets", "q_prj"], &["q_prj", "q_proj"]);
    fails(&["--report-to", "wandb"], &["tensorboard"]);
    fails(&["--alpha", "3", "--rslora", "--num-layers", "0"], &["num_layers is 0"]);
    fails(&["--resume"], &["no checkpoint"]);
    fails(&["--schedule", "stable"], &["decay_steps"]);
    let model = tiny_chat();
    run(&["train", "-m", &model, "--data", "/nonexistent"]).fails(1, &["/nonexistent"]);
    run(&["train", "--data", "x"]).fails(1, &["--model", "--from-config"]);
    run(&["train", "--resume", "--rank", "3"]).fails(1, &["leave out rank"]);
}

#[test]
fn a_model_is_trained_from_random_weights() {
    let folder = bench();
    let [data, out] = ["data", "out"].map(|name| path_text(&folder.path().join(name)));
    let model = tiny_chat();
    let args = [
        "train",
        "--from-config",
        &model,
        "--data",
        &data,
        "--adapter-path",
        &out,
        "--epochs",
        "60",
        "--batch-size",
        "8",
        "--learning-rate",
        "1e-2",
        "--supervise",
        "all",
        "--device",
        "cpu",
    ];
    run(&args).ok();
    let ask = ["generate", "-m", &out, "--raw", "--prompt", "Once there", "-n", "8", "--temp", "0"];
    let text = run(&ask).ok().out;
    assert!(text.starts_with(" was a small"), "{text}");
}
