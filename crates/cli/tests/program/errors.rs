//! A tour of bad input: each error says what is wrong and where, with exit code 1.

use std::fs;

use metal_candle_testkit::corrupt;

use crate::support::{copy_of_tiny_chat, file, path_text, run, run_with_input, tiny_chat};

fn generate(model: &str) -> [String; 5] {
    ["generate", "--prompt", "Hello", "-m", model].map(str::to_owned)
}

fn fails(model: &str, words: &[&str]) {
    let args = generate(model);
    run(&args.each_ref().map(String::as_str)).fails(1, &[&["error:"], words].concat());
}

#[test]
fn models_that_are_not_there() {
    fails("/nonexistent/model", &["/nonexistent/model", "config.json"]);
    fails("gpt2", &["gpt2", "org/name"]);
    fails("org/name", &["org/name", "offline"]);
    let (folder, path) = file("model.safetensors", "");
    fails(&path, &["is a file"]);
    fails(&path_text(folder.path()), &["tokenizer.json"]);
}

#[test]
fn damaged_weights_are_named() {
    let damaged = |damage: &dyn Fn(&std::path::Path), words: &[&str]| {
        let copy = copy_of_tiny_chat();
        damage(&copy.path().join("model.safetensors"));
        fails(&path_text(copy.path()), words);
    };
    damaged(&|path| corrupt::truncate(path, 5000), &["model.safetensors", "truncated", "are missing"]);
    damaged(&|path| corrupt::poison(path, "model.norm.weight", 3), &["model.norm.weight", "NaN"]);
    damaged(&|path| corrupt::flip_header(path), &["model.safetensors", "not a valid safetensors file"]);
    damaged(&|path| corrupt::rename(path, "model.norm.weight", "extra"), &["model.norm.weight", "extra"]);
    damaged(&|path| corrupt::set_dtype(path, "model.norm.weight", "I32"), &["model.norm.weight", "I32"]);
    damaged(&|path| fs::remove_file(path).unwrap(), &["holds no weights"]);
}

#[test]
fn unknown_config_keys_can_be_ignored_by_name_only() {
    let copy = copy_of_tiny_chat();
    let path = copy.path().join("config.json");
    let config = fs::read_to_string(&path).unwrap().replacen('{', "{\"new_trick\": 7,", 1);
    fs::write(&path, config).unwrap();
    let model = path_text(copy.path());
    fails(&model, &["new_trick"]);
    let args = generate(&model);
    let args = args.each_ref().map(String::as_str);
    run(&[&args[..], &["--ignore-config-key", "new_trick"]].concat()).ok();
}

#[test]
fn prompts_that_cannot_be_answered() {
    let model = tiny_chat();
    let base = ["generate", "-m", model.as_str()];
    run(&[&base[..], &["--prompt", ""]].concat()).fails(1, &["the prompt is empty"]);
    run_with_input(&[&base[..], &["--prompt", "-"]].concat(), "\n").fails(1, &["the prompt is empty"]);
    let long = "Hello ".repeat(300);
    run(&[&base[..], &["--prompt", &long]].concat()).fails(1, &["256"]);
    run(&[&base[..], &["--prompt", "Hello", "-n", "0"]].concat()).fails(1, &["error:"]);
    run(&[&base[..], &["--prompt", "Hello", "--top-p", "1.5"]].concat()).fails(1, &["top_p", "1.5"]);
    run(&[&base[..], &["--prompt", "Hello", "--temp", "-1"]].concat()).fails(1, &["temperature", "-1"]);
    run(&[&base[..], &["--prompt", "Hello", "--logit-bias", "397=1"]].concat()).fails(1, &["397"]);
    run(&[&base[..], &["--prompt-file", "/nonexistent.txt"]].concat())
        .fails(1, &["cannot read /nonexistent.txt"]);
}

#[test]
fn instructions_need_a_template() {
    let copy = copy_of_tiny_chat();
    fs::write(copy.path().join("tokenizer_config.json"), "{}").unwrap();
    let model = path_text(copy.path());
    run(&["generate", "-m", &model, "--prompt", "Hello", "--system", "Be brief."])
        .fails(1, &["--system needs a chat template"]);
    // Without a template a prompt is continued.
    let plain = run(&["generate", "-m", &model, "--prompt", "Once there was", "--temp", "0"]).ok();
    assert!(plain.out.starts_with(" a small boat"), "{plain:?}");
}

#[test]
fn devices_that_are_not_there_are_never_replaced() {
    for device in ["cuda", "metal:0"] {
        if run(&["doctor", "--json"]).json()["devices"][if device == "cuda" { "cuda:0" } else { device }]
            == "ready"
        {
            continue;
        }
        run(&["generate", "-m", &tiny_chat(), "--prompt", "Hello", "--device", device])
            .fails(1, &["error:", device]);
    }
}
