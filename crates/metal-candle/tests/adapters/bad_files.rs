//! Every kind of bad adapter folder: each error names the file, and all that is wrong with it.

use std::{fs, path::Path};

use metal_candle::lora::{Format, LoraConfig, Method, SaveOptions, StoredAdapter};
use metal_candle_testkit::corrupt;
use serde_json::{Value, json};

use crate::support::{config, model, random_adapter};

const PEFT: &str = "adapter_model.safetensors";
const MLX: &str = "adapters.safetensors";

fn good(format: Format, method: Method) -> tempfile::TempDir {
    let model = model("llama3");
    let own = LoraConfig { method, ..config(&["q_proj", "up_proj"]) };
    let folder = tempfile::tempdir().unwrap();
    let options = SaveOptions { base_model: None, layer_count: Some(model.spec().layers.len()) };
    random_adapter(&own, &model, 1).save(folder.path(), format, &options).unwrap();
    folder
}

/// Asserts that loading for the model names all these, and returns the message.
#[track_caller]
fn fails_for(folder: &Path, name: &str, words: &[&str]) -> String {
    let error = StoredAdapter::load(folder, Some(model(name).spec())).unwrap_err().to_string();
    for word in words {
        assert!(error.contains(word), "`{word}` is missing in: {error}");
    }
    assert!(error.contains(&folder.display().to_string()), "{error}");
    error
}

#[track_caller]
fn fails(folder: &Path, words: &[&str]) -> String {
    fails_for(folder, "llama3", words)
}

#[track_caller]
fn bad_config(format: Format, edits: &[(&str, Value)], words: &[&str]) {
    let folder = good(format, Method::Lora);
    let path = folder.path().join("adapter_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (key, value) in edits {
        match key.split_once('.') {
            Some((outer, inner)) => config[outer][inner] = value.clone(),
            None => config[*key] = value.clone(),
        }
    }
    fs::write(&path, config.to_string()).unwrap();
    fails(folder.path(), words);
}

#[test]
fn folders_without_an_adapter() {
    let folder = tempfile::tempdir().unwrap();
    fails(folder.path(), &["it holds no adapter", PEFT, MLX]);
    fails(&folder.path().join("nothing"), &["there is no such folder"]);
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    fails(folder.path(), &["it holds a model, not an adapter"]);
    fails(&folder.path().join("config.json"), &["it is a file; an adapter is a folder"]);
    fs::write(folder.path().join("adapter_model.bin"), "").unwrap();
    fails(folder.path(), &["pickle", "safe_serialization=True"]);
    fs::write(folder.path().join(PEFT), "").unwrap();
    fails(folder.path(), &["cannot read", "adapter_config.json"]);
    fs::write(folder.path().join(MLX), "").unwrap();
    fails(folder.path(), &["it holds both"]);
}

#[test]
fn damaged_files() {
    let damaged = |damage: &dyn Fn(&Path), words: &[&str]| {
        for (format, file) in [(Format::Peft, PEFT), (Format::Mlx, MLX)] {
            let folder = good(format, Method::Lora);
            damage(&folder.path().join(file));
            fails(folder.path(), words);
        }
    };
    damaged(&|path| corrupt::truncate(path, 3000), &["is truncated"]);
    damaged(&|path| corrupt::flip_header(path), &["is not a valid safetensors file"]);
    damaged(&|path| fs::write(path, "").unwrap(), &["it is empty"]);
    damaged(
        &|path| fs::write(path.with_file_name("adapter_config.json"), "{").unwrap(),
        &["adapter_config.json: it is not valid"],
    );
    damaged(
        &|path| fs::write(path.with_file_name("adapter_config.json"), "[]").unwrap(),
        &["adapter_config.json: it is not valid"],
    );
}

#[test]
fn every_wrong_tensor_is_listed() {
    let path = |name: &str| format!("base_model.model.model.layers.{name}");
    let folder = good(Format::Peft, Method::Dora);
    let file = folder.path().join(PEFT);
    corrupt::rename(
        &file,
        &path("0.self_attn.q_proj.lora_A.weight"),
        &path("0.self_attn.q_proj.lora_C.weight"),
    );
    corrupt::rename(&file, &path("1.mlp.up_proj.lora_A.weight"), &path("1.mlp.gate_proj.lora_A.weight"));
    corrupt::set_shape(&file, &path("0.mlp.up_proj.lora_A.weight"), &[40, 4]);
    corrupt::poison(&file, &path("0.mlp.up_proj.lora_B.weight"), 7);
    corrupt::set_dtype(&file, &path("1.self_attn.q_proj.lora_B.weight"), "I32");
    corrupt::rename(
        &file,
        &path("1.self_attn.q_proj.lora_magnitude_vector"),
        &path("7.self_attn.q_proj.lora_magnitude_vector"),
    );
    let error = fails(
        folder.path(),
        &[
            "0.self_attn.q_proj.lora_C.weight: no matrix of an adapter",
            "0.self_attn.q_proj.lora_A.weight: it is missing",
            "1.mlp.up_proj.lora_A.weight: it is missing",
            "1.mlp.gate_proj.lora_A.weight: adapter_config.json does not name this module",
            "0.mlp.up_proj.lora_A.weight: it is [40, 4], expected [4, 40]",
            "0.mlp.up_proj.lora_B.weight: 1 of its 208 numbers are NaN or infinite",
            "1.self_attn.q_proj.lora_B.weight: its type is I32",
            "1.self_attn.q_proj.lora_magnitude_vector: it is missing",
            "7.self_attn.q_proj.lora_magnitude_vector: the model has no such module",
        ],
    );
    assert!(error.starts_with(&file.display().to_string()), "{error}");
}

#[test]
fn every_wrong_tensor_of_mlx_is_listed() {
    let folder = good(Format::Mlx, Method::Lora);
    let file = folder.path().join(MLX);
    corrupt::rename(&file, "model.layers.0.self_attn.q_proj.lora_a", "model.layers.0.self_attn.q_proj.m");
    corrupt::set_shape(&file, "model.layers.0.mlp.up_proj.lora_b", &[2, 104]);
    corrupt::rename(&file, "model.layers.1.mlp.up_proj.lora_b", "model.embed_tokens.lora_b");
    let words = [
        "model.layers.0.self_attn.q_proj.lora_a: it is missing",
        "model.layers.0.self_attn.q_proj.m: magnitudes belong to DoRA",
        "model.layers.0.mlp.up_proj.lora_b: it is [2, 104], expected [4, 52]",
        "model.layers.1.mlp.up_proj.lora_b: it is missing",
        "model.embed_tokens.lora_b: no matrix of an adapter",
    ];
    fails(folder.path(), &words);
    // What can be seen without a model is seen without it.
    let error = StoredAdapter::load(folder.path(), None).unwrap_err().to_string();
    let words = [words[0], words[1], words[3], words[4], "lora_b: it is [2, 104], expected [4, any]"];
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
}

#[test]
fn adapters_of_other_models() {
    for format in Format::ALL {
        let folder = good(format, Method::Lora);
        fails_for(folder.path(), "qwen2", &["layers.0.self_attn.q_proj", "expected [4, "]);
        fails_for(folder.path(), "phi3", &["layers.0.self_attn.q_proj", "the model has no such module"]);
    }
}

#[test]
fn peft_configs_that_are_not_supported_name_the_key() {
    let refused = |key: &str, value: Value, words: &[&str]| {
        bad_config(Format::Peft, &[(key, value)], &[&[format!("`{key}`").as_str()], words].concat());
    };
    refused("peft_type", json!("LOHA"), &["only \"LORA\""]);
    refused("bias", json!("all"), &["trained biases"]);
    refused("init_lora_weights", json!("pissa_niter_4"), &["path_initial_model_for_weight_conversion"]);
    refused("init_lora_weights", json!("loftq"), &[]);
    for (key, value) in [
        ("modules_to_save", json!(["lm_head"])),
        ("fan_in_fan_out", json!(true)),
        ("layer_replication", json!([[0, 1]])),
        ("trainable_token_indices", json!([1])),
        ("target_parameters", json!(["experts.gate_up_proj"])),
        ("alora_invocation_tokens", json!([1, 2])),
        ("lora_bias", json!(true)),
        ("use_qalora", json!(true)),
        ("arrow_config", json!({ "top_k": 2 })),
        ("kasa_config", json!({ "beta": 1e-4 })),
        ("a_key_of_tomorrow", json!(3)),
    ] {
        refused(key, value, &["which is not supported"]);
    }
    refused("r", json!(0), &["at least 1"]);
    refused("r", json!("8"), &["expected a number"]);
    refused("lora_alpha", json!(null), &["other than 0"]);
    refused("target_modules", json!(null), &["must name the modules"]);
    refused("target_modules", json!("(q_proj"), &["regular expression"]);
    refused("rank_pattern", json!({ "q_proj": 2.5 }), &["whole numbers"]);
    refused("rank_pattern", json!({ "[": 2 }), &["regular expression"]);
    refused("alpha_pattern", json!([1]), &["expected numbers by module"]);
    refused("layers_to_transform", json!("last"), &["a number or a list"]);
    refused("use_dora", json!(1), &["expected true or false"]);
    // All at once.
    let edits = [("bias", json!("lora_only")), ("r", json!(-1)), ("modules_to_save", json!(["norm"]))];
    bad_config(Format::Peft, &edits, &["`bias`", "`r`", "`modules_to_save`"]);
    bad_config(
        Format::Peft,
        &[("target_modules", json!(["query"]))],
        &["name no module of the model", "does not name this module"],
    );
}

#[test]
fn mlx_configs_that_are_not_supported_name_the_key() {
    let refused = |edits: &[(&str, Value)], words: &[&str]| bad_config(Format::Mlx, edits, words);
    refused(&[("fine_tune_type", json!("full"))], &["`fine_tune_type` is \"full\""]);
    refused(&[("num_layers", json!("16"))], &["`num_layers`"]);
    refused(&[("lora_parameters", json!(null))], &["`lora_parameters`", "rank"]);
    refused(&[("lora_parameters.alpha", json!(16))], &["unknown key `alpha`", "scale"]);
    refused(&[("lora_parameters.rank", json!(0)), ("lora_parameters.scale", json!(0))], &["rank", "scale"]);
    refused(&[("lora_parameters.keys", json!("q_proj"))], &["a list of paths"]);
    refused(&[("lora_parameters.keys", json!(["self_attn.query"]))], &["`self_attn.query`"]);
    refused(
        &[("num_layers", json!(1))],
        &["layers.0.self_attn.q_proj.lora_a: adapter_config.json does not name"],
    );
    refused(&[("lora_parameters.rank", json!(5))], &["it is [40, 4], expected [40, 5]"]);
}
