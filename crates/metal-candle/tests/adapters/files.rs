//! Adapter folders: what the two formats can say, and what is written.

use std::{fs, path::Path};

use candle_core::{DType, Device};
use metal_candle::{
    lora::{
        Adapter, Format, Initialisation, LoraConfig, LoraError, Method, SaveOptions, Scaling, Site,
        StoredAdapter,
    },
    model::Model,
};
use metal_candle_testkit::{corrupt, tolerance::Gate};
use serde_json::{Value, json};

use crate::support::{bits, close, config, logits, model, prompt, random_adapter, with};

const OPTIONS: SaveOptions<'_> = SaveOptions { base_model: Some("org/base"), layer_count: None };

fn saved(adapter: &Adapter, format: Format, model: &Model) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let options = SaveOptions { layer_count: Some(model.spec().layers.len()), ..OPTIONS };
    adapter.save(folder.path(), format, &options).unwrap();
    folder
}

fn read(folder: &Path, model: &Model) -> Adapter {
    StoredAdapter::load(folder, Some(model.spec())).unwrap().adapter
}

fn edit(folder: &Path, edit: impl FnOnce(&mut Value)) {
    let path = folder.join("adapter_config.json");
    let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn both_formats_keep_every_bit_of_every_type_and_the_config() {
    let model = model("qwen2");
    let methods = [
        config(&["q_proj", "down_proj"]),
        LoraConfig {
            scaling: Scaling::RankStabilised(10.0),
            rank: 3,
            dropout: 0.1,
            ..config(&["all-linear"])
        },
        LoraConfig {
            method: Method::Dora,
            scaling: Scaling::Alpha(0.7),
            last_layers: Some(1),
            ..config(&["v_proj"])
        },
        LoraConfig { scaling: Scaling::Factor(20.0), ..config(&["k_proj"]) },
    ];
    for config in methods {
        let adapter = random_adapter(&config, &model, 1);
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let adapter = adapter.to(&Device::Cpu, dtype).unwrap();
            let mut last = adapter.clone();
            for format in [Format::Peft, Format::Mlx, Format::Peft, Format::Peft, Format::Mlx] {
                let folder = saved(&last, format, &model);
                assert_eq!(names(folder.path()), ["adapter_config.json", format.weights_file()]);
                last = read(folder.path(), &model);
                assert_eq!(bits(&last), bits(&adapter), "{config:?} {dtype:?} {format:?}");
                assert_eq!((last.config.rank, last.config.dropout), (config.rank, config.dropout));
                assert_eq!(
                    (last.config.method, last.config.last_layers),
                    (config.method, config.last_layers)
                );
                let sites = |config: &LoraConfig| config.sites(model.spec()).unwrap();
                assert_eq!(sites(&last.config), sites(&config));
            }
        }
    }
}

#[test]
fn a_peft_config_says_what_was_meant() {
    let model = model("llama3");
    let own = LoraConfig {
        scaling: Scaling::RankStabilised(10.0),
        last_layers: Some(1),
        ..config(&["q_proj", "v_proj"])
    };
    let folder = saved(&random_adapter(&own, &model, 1), Format::Peft, &model);
    edit(folder.path(), |config| {
        for (key, expected) in [
            ("peft_type", json!("LORA")),
            ("r", json!(4)),
            ("lora_alpha", json!(10)),
            ("use_rslora", json!(true)),
            ("use_dora", json!(false)),
            ("target_modules", json!(["q_proj", "v_proj"])),
            ("layers_to_transform", json!([1])),
            ("base_model_name_or_path", json!("org/base")),
            ("task_type", json!("CAUSAL_LM")),
        ] {
            assert_eq!(config[key], expected, "{key}");
        }
    });
}

#[test]
fn other_ranks_and_scales_survive_both_formats() {
    let model = model("llama3");
    let tokens = prompt(&model, 19);
    let own = LoraConfig {
        rank_pattern: [("v_proj".to_owned(), 6), ("layers.1.self_attn.q_proj".to_owned(), 3)].into(),
        alpha_pattern: [("down_proj".to_owned(), 3.0), ("layers.0.self_attn.v_proj".to_owned(), 10.0)].into(),
        ..config(&["q_proj", "v_proj", "down_proj"])
    };
    let adapter = random_adapter(&own, &model, 4);
    let expected = logits(&model, &tokens, Some(&with(&model, &adapter)));
    let peft = read(saved(&adapter, Format::Peft, &model).path(), &model);
    assert_eq!(bits(&peft), bits(&adapter));
    assert_eq!(peft.config.rank_at(Site::parse("model.layers.1.self_attn.q_proj").unwrap()), 3);
    for dtype in [DType::F32, DType::BF16] {
        let adapter = peft.to(&Device::Cpu, dtype).unwrap();
        let expected = match dtype {
            DType::F32 => expected.clone(),
            _ => logits(&model, &tokens, Some(&with(&model, &adapter))),
        };
        let mlx = read(saved(&adapter, Format::Mlx, &model).path(), &model);
        // Of the six sites, down_proj's two share 3 / 4.
        assert!(mlx.layers.values().all(|layer| layer.lora.rank() == 6 && layer.lora.scale == 0.75));
        close(&logits(&model, &tokens, Some(&with(&model, &mlx))), &expected, Gate::SameModel, "as MLX");
        let again = read(saved(&mlx, Format::Peft, &model).path(), &model);
        assert_eq!(bits(&again), bits(&mlx));
    }
}

#[test]
fn mlx_fills_sites_that_it_cannot_leave_out() {
    let model = model("llama3");
    let tokens = prompt(&model, 19);
    let own = config(&["layers.0.self_attn.q_proj", "layers.1.mlp.up_proj"]);
    let adapter = random_adapter(&own, &model, 4);
    let mlx = read(saved(&adapter, Format::Mlx, &model).path(), &model);
    assert_eq!(mlx.layers.len(), 4);
    let [found, expected] =
        [&mlx, &adapter].map(|adapter| logits(&model, &tokens, Some(&with(&model, adapter))));
    assert_eq!(found, expected);
    let dora = random_adapter(&LoraConfig { method: Method::Dora, ..own }, &model, 4);
    let options = SaveOptions { layer_count: Some(2), ..OPTIONS };
    let folder = tempfile::tempdir().unwrap();
    let error = dora.save(folder.path(), Format::Mlx, &options).unwrap_err().to_string();
    assert!(error.contains("DoRA without model.layers."), "{error}");
    assert!(names(folder.path()).is_empty());
}

#[test]
fn blocks_are_only_counted_from_a_known_last_one() {
    let model = model("llama3");
    for (targets, last_layers, known) in [
        (&["q_proj"][..], None, true),
        (&["q_proj"], Some(1), true),
        (&["layers.1.self_attn.q_proj"], None, false),
        (&["layers.0.self_attn.q_proj"], None, false),
    ] {
        let own = LoraConfig { last_layers, ..config(targets) };
        let peft = saved(&random_adapter(&own, &model, 4), Format::Peft, &model);
        // Read with the model, which knows what is last, and without it.
        let adapter = read(peft.path(), &model);
        let folder = tempfile::tempdir().unwrap();
        let is_last = last_layers.is_some() || targets[0].contains("layers.1");
        assert_eq!(
            adapter.save(folder.path(), Format::Mlx, &OPTIONS).is_ok(),
            known || is_last,
            "{targets:?}"
        );
        let blind = StoredAdapter::load(peft.path(), None).unwrap().adapter;
        let saved = blind.save(tempfile::tempdir().unwrap().path(), Format::Mlx, &OPTIONS);
        let is_unknown = matches!(saved, Err(LoraError::BlockCountUnknown));
        assert_eq!(is_unknown, last_layers.is_some() || !known, "{targets:?}");
    }
}

#[test]
fn a_subtracted_part_is_written_as_rank() {
    let model = model("llama3");
    let tokens = prompt(&model, 19);
    let own = LoraConfig { initialisation: Initialisation::Pissa, ..config(&["q_proj", "up_proj"]) };
    let adapter = random_adapter(&own, &model, 4);
    let expected = logits(&model, &tokens, Some(&with(&model, &adapter)));
    for format in Format::ALL {
        let stored = read(saved(&adapter, format, &model).path(), &model);
        assert_eq!((stored.config.rank, stored.config.initialisation), (8, Initialisation::Kaiming));
        close(
            &logits(&model, &tokens, Some(&with(&model, &stored))),
            &expected,
            Gate::SameModel,
            format.name(),
        );
    }
}

#[test]
fn peft_names_modules_in_many_ways() {
    let model = model("llama3");
    let blocks = model.spec().layers.len();
    let adapter = random_adapter(&config(&["q_proj", "up_proj"]), &model, 4);
    let folder = saved(&adapter, Format::Peft, &model);
    for targets in [
        json!(["q_proj", "up_proj", "embed_tokens"]),
        json!(["self_attn.q_proj", "mlp.up_proj"]),
        json!("model\\.layers\\.\\d+\\.(self_attn\\.q|mlp\\.up)_proj"),
        json!(".*(?<!k_proj|v_proj|o_proj|gate_proj|down_proj)"),
        Value::from_iter(adapter.layers.keys().map(|site| site.path())),
    ] {
        edit(folder.path(), |config| config["target_modules"] = targets.clone());
        assert_eq!(bits(&read(folder.path(), &model)), bits(&adapter), "{targets}");
    }
    for (key, value) in [
        ("exclude_modules", json!(["k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"])),
        ("exclude_modules", json!(".*(k|v|o|gate|down)_proj")),
    ] {
        edit(folder.path(), |config| {
            config["target_modules"] = json!("all-linear");
            config[key] = value;
        });
        assert_eq!(bits(&read(folder.path(), &model)), bits(&adapter));
    }
    // Blocks by number, and by the name of what holds them.
    let last = random_adapter(&LoraConfig { last_layers: Some(1), ..config(&["q_proj"]) }, &model, 4);
    let folder = saved(&last, Format::Peft, &model);
    for (layers, pattern) in [
        (json!([blocks - 1]), json!(null)),
        (json!(blocks - 1), json!("layers")),
        (json!([blocks - 1, 99]), json!(["h", "layers"])),
    ] {
        edit(folder.path(), |config| {
            config["layers_to_transform"] = layers;
            config["layers_pattern"] = pattern;
        });
        let read = read(folder.path(), &model);
        assert_eq!((bits(&read), read.config.last_layers), (bits(&last), Some(1)));
    }
}

#[test]
fn the_first_pattern_of_the_file_counts() {
    let model = model("llama3");
    let adapter = random_adapter(&config(&["q_proj", "v_proj"]), &model, 4);
    let folder = saved(&adapter, Format::Peft, &model);
    edit(folder.path(), |config| {
        config["alpha_pattern"] =
            json!({ ".*q_proj": 2, "layers.0.self_attn.q_proj": 4, "1.self_attn.v_.*": 32 });
    });
    let read = read(folder.path(), &model);
    let scales: Vec<(String, f32)> =
        read.layers.iter().map(|(site, layer)| (site.path(), layer.lora.scale)).collect();
    for (path, scale) in scales {
        let expected = match path.as_str() {
            "model.layers.1.self_attn.v_proj" => 8.0,
            "model.layers.0.self_attn.v_proj" => 4.0,
            _ => 0.5,
        };
        assert_eq!(scale, expected, "{path}");
    }
}

#[test]
fn older_files_are_read() {
    let model = model("llama3");
    let adapter = random_adapter(&LoraConfig { method: Method::Dora, ..config(&["q_proj"]) }, &model, 4);
    let folder = saved(&adapter, Format::Peft, &model);
    for layer in 0..model.spec().layers.len() {
        let name = format!("base_model.model.model.layers.{layer}.self_attn.q_proj.lora_magnitude_vector");
        corrupt::rename(&folder.path().join("adapter_model.safetensors"), &name, &format!("{name}.weight"));
    }
    assert_eq!(bits(&read(folder.path(), &model)), bits(&adapter));
    let folder = saved(&adapter, Format::Mlx, &model);
    edit(folder.path(), |config| {
        let config = config.as_object_mut().unwrap();
        config.remove("fine_tune_type");
        config.remove("num_layers");
        config.insert("use_dora".into(), true.into());
        config.insert("lora_layers".into(), 99.into());
    });
    assert_eq!(bits(&read(folder.path(), &model)), bits(&adapter));
}

#[test]
fn a_folder_is_replaced_whole_and_keeps_its_other_files() {
    let model = model("llama3");
    let [old, new] = [1, 2].map(|seed| random_adapter(&config(&["q_proj"]), &model, seed));
    for format in Format::ALL {
        let folder = saved(&old, format, &model);
        fs::write(folder.path().join("metrics.jsonl"), "{}").unwrap();
        new.save(folder.path(), format, &OPTIONS).unwrap();
        assert_eq!(bits(&read(folder.path(), &model)), bits(&new));
        assert_eq!(names(folder.path()).len(), 3);
        assert!(folder.path().join("metrics.jsonl").is_file());
    }
}

#[test]
fn folders_of_something_else_are_refused() {
    let model = model("llama3");
    let adapter = random_adapter(&config(&["q_proj"]), &model, 1);
    let refused = |folder: &Path, format: Format, words: &str| {
        let before = names(folder);
        let error = adapter.save(folder, format, &OPTIONS).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains(&folder.display().to_string()), "{error}");
        assert_eq!(names(folder), before);
    };
    let peft = saved(&adapter, Format::Peft, &model);
    refused(peft.path(), Format::Mlx, "it already holds adapter_model.safetensors");
    let mlx = saved(&adapter, Format::Mlx, &model);
    refused(mlx.path(), Format::Peft, "it already holds adapters.safetensors");
    fs::remove_file(mlx.path().join("adapters.safetensors")).unwrap();
    refused(mlx.path(), Format::Peft, "belongs to an adapter in another format");
    let base = tempfile::tempdir().unwrap();
    fs::write(base.path().join("config.json"), "{}").unwrap();
    refused(base.path(), Format::Peft, "it is the folder of a model (config.json)");
    // A program that converts asks for more: nothing else may lie there.
    fs::write(peft.path().join("thesis.tex"), "").unwrap();
    let error = Format::Peft.check_vacant(peft.path()).unwrap_err().to_string();
    assert!(error.contains("it holds other files (thesis.tex)"), "{error}");
    Format::Peft.check_vacant(&peft.path().join("new")).unwrap();
    Format::Peft.check_vacant(saved(&adapter, Format::Peft, &model).path()).unwrap();
}
