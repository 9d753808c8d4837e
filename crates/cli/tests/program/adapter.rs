//! `adapter`, and `--adapter` of the commands that run a model.

use std::{fs, path::Path};

use metal_candle_testkit::golden;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{path_text, run, run_with_input, tiny_chat};

/// An adapter for [`tiny_chat`] that plainly changes what it says: PEFT's format, rank 2, q and v of both blocks.
fn adapter(scale: f32) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config: Value = golden::json("models/tiny-chat/config.json");
    let size = |key: &str| usize::try_from(config[key].as_u64().unwrap()).unwrap();
    let (hidden, head) = (size("hidden_size"), size("head_dim"));
    let (mut header, mut data) = (serde_json::Map::new(), Vec::<u8>::new());
    let mut add = |name: String, shape: [usize; 2], sign: f32| {
        let start = data.len();
        for index in 0..shape[0] * shape[1] {
            data.extend((sign * ((index * 7 % 11) as f32 - 5.0) / 10.0).to_le_bytes());
        }
        header.insert(name, json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, data.len()] }));
    };
    for layer in 0..size("num_hidden_layers") {
        for (module, heads) in [("q_proj", "num_attention_heads"), ("v_proj", "num_key_value_heads")] {
            let path = format!("base_model.model.model.layers.{layer}.self_attn.{module}");
            add(format!("{path}.lora_A.weight"), [2, hidden], 1.0);
            add(format!("{path}.lora_B.weight"), [size(heads) * head, 2], -1.0);
        }
    }
    let header = serde_json::to_vec(&header).unwrap();
    let file = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    fs::write(folder.path().join("adapter_model.safetensors"), file).unwrap();
    let config = json!({
        "peft_type": "LORA", "r": 2, "lora_alpha": 2.0 * scale, "target_modules": ["q_proj", "v_proj"],
        "base_model_name_or_path": "org/tiny",
    });
    fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    folder
}

fn text(folder: &Path) -> String {
    path_text(folder)
}

fn generate(extra: &[&str]) -> Value {
    let model = tiny_chat();
    let base = [
        "generate",
        "-m",
        &model,
        "--raw",
        "--prompt",
        "Once there was",
        "--temp",
        "0",
        "-n",
        "12",
        "--json",
    ];
    run(&[&base[..], extra].concat()).json()
}

#[test]
fn generate_uses_adapters_as_strongly_as_asked() {
    let folder = adapter(1.0);
    let path = text(folder.path());
    let base = generate(&[]);
    assert_eq!(base["adapters"], json!([]));
    let changed = generate(&["--adapter", &path]);
    assert_ne!(changed["tokens"], base["tokens"]);
    assert_eq!(changed["adapters"], json!([{ "folder": path, "scale": 1.0 }]));
    assert_eq!(generate(&["--adapter", &path, "--adapter-scale", "0"])["tokens"], base["tokens"]);
    // Two of them that cancel each other.
    let both = ["--adapter", &path, "--adapter-scale", "2.5", "--adapter", &path, "--adapter-scale", "-2.5"];
    assert_eq!(generate(&both)["tokens"], base["tokens"]);
}

#[test]
fn every_command_and_a_merged_model_agree() {
    let folder = adapter(0.3);
    let path = text(folder.path());
    let model = tiny_chat();
    let parent = tempfile::tempdir().unwrap();
    let (merged, mlx) = (text(&parent.path().join("merged")), text(&parent.path().join("mlx")));
    let report =
        run(&["adapter", "merge", "-m", &model, "--adapter", &path, "--output", &merged, "--json"]).json();
    assert_eq!(report["changed"], json!(4), "{report}");
    run(&["adapter", "convert", &path, &mlx, "--format", "mlx"]).ok();
    let loss = |args: &[&str]| {
        let line = json!({ "text": "The quick brown fox jumps over the lazy dog." }).to_string();
        let args = [&["eval", "--data", "-", "--json"], args].concat();
        run_with_input(&args, &line).json()["loss"].as_f64().unwrap()
    };
    let expected = loss(&["-m", &model, "--adapter", &path]);
    assert!((loss(&["-m", &model]) - expected).abs() > 0.01);
    for args in [&["-m", merged.as_str()][..], &["-m", &model, "--adapter", &mlx]] {
        assert!((loss(args) - expected).abs() < 1e-4, "{args:?}");
    }
    let chat = |args: &[&str]| {
        run_with_input(&[&["chat", "--temp", "0", "-n", "8", "--quiet"], args].concat(), "Hello\n").ok().out
    };
    assert_eq!(chat(&["-m", &model, "--adapter", &path]), chat(&["-m", &merged]));
}

#[test]
fn inspect_says_what_an_adapter_is() {
    let folder = adapter(1.5);
    let path = text(folder.path());
    let report = run(&["adapter", "inspect", &path, "--json"]).json();
    for (key, expected) in [
        ("format", json!("peft")),
        ("method", json!("lora")),
        ("rank", json!(2)),
        ("base_model", json!("org/tiny")),
        ("targets", json!(["q_proj", "v_proj"])),
        ("blocks", json!([0, 1])),
        ("dtypes", json!(["f32"])),
    ] {
        assert_eq!(report[key], expected, "{key}");
    }
    let modules = report["modules"].as_array().unwrap();
    assert_eq!((modules.len(), &modules[0]["scale"]), (4, &json!(1.5)));
    let sum: u64 = modules.iter().map(|module| module["parameters"].as_u64().unwrap()).sum();
    assert_eq!(report["parameters"], sum);
    assert!(modules.iter().all(|module| module["norm_change"].as_f64().unwrap() > 0.0));
    let table = run(&["adapter", "inspect", &path]).ok().out;
    for word in ["peft", "q_proj", "0-1", "org/tiny", "1.5", "|A|"] {
        assert!(table.contains(word), "{table}");
    }
}

#[test]
fn converting_there_and_back_gives_the_same_bytes() {
    let folder = adapter(0.7);
    let parent = tempfile::tempdir().unwrap();
    let (mlx, peft) = (text(&parent.path().join("mlx")), text(&parent.path().join("peft")));
    let report = run(&["adapter", "convert", &text(folder.path()), &mlx, "--format", "mlx", "--json"]).json();
    assert_eq!((&report["from"]["format"], &report["to"]["format"]), (&json!("peft"), &json!("mlx")));
    assert_eq!(report["base_model"], "org/tiny");
    let model = tiny_chat();
    let args =
        ["adapter", "convert", &mlx, &peft, "--format", "peft", "-m", &model, "--base-model", "org/other"];
    assert!(run(&args).ok().err.contains("wrote a PEFT adapter"));
    let [before, after] = [folder.path(), Path::new(&peft)]
        .map(|folder| run(&["adapter", "inspect", &text(folder), "--json"]).json());
    assert_eq!((&before["modules"], &after["base_model"]), (&after["modules"], &json!("org/other")));
}

#[test]
fn mistakes_are_named() {
    let folder = adapter(1.0);
    let (path, model) = (text(folder.path()), tiny_chat());
    let base = ["generate", "-m", &model, "--prompt", "Hello"];
    let fails = |args: &[&str], code, words: &[&str]| {
        run(&[&base[..], args].concat()).fails(code, words);
    };
    fails(&["--adapter", "/nonexistent"], 1, &["/nonexistent", "there is no such folder"]);
    fails(&["--adapter", &model], 1, &["it holds a model, not an adapter"]);
    fails(&["--adapter-scale", "1"], 2, &["--adapter <FOLDER>"]);
    fails(&["--adapter", &path, "--adapter-scale", "much"], 2, &["it must be a number such as 0.5"]);
    let scales = ["--adapter", &path, "--adapter", &path, "--adapter-scale", "1"];
    fails(&scales, 1, &["--adapter is given 2 times and --adapter-scale 1 times"]);
    // An adapter of another model: all its tensors are listed.
    let other = text(&golden::root().join("training/llama3-lora"));
    fails(
        &["--adapter", &other],
        1,
        &["layers.0.self_attn.q_proj.lora_A.weight", "layers.1.self_attn.v_proj.lora_B.weight"],
    );

    let convert = |to: &str, words: &[&str]| {
        run(&["adapter", "convert", &path, to, "--format", "mlx"]).fails(1, words);
    };
    convert(&path, &["already holds adapter_model.safetensors"]);
    convert(&model, &["it holds other files"]);
    run(&["adapter", "convert", &path, "/tmp/x", "--format", "gguf"]).fails(2, &["peft, mlx"]);
    run(&["adapter", "inspect", &model]).fails(1, &["it holds a model, not an adapter"]);
    run(&["adapter", "merge", "-m", &model, "--adapter", &path, "--output", &model])
        .fails(1, &["it is not empty"]);
    let last = text(&golden::root().join("training/gemma2-rslora"));
    let new = tempfile::tempdir().unwrap();
    run(&["adapter", "convert", &last, &text(new.path()), "--format", "mlx"])
        .fails(1, &["--model", "counts blocks from the last"]);
}
