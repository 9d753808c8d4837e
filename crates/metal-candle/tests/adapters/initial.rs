//! First values: their distribution, and that a seed decides them.

use candle_core::{DType, Tensor};
use metal_candle::lora::{Adapter, Initialisation, LoraConfig, Method};

use crate::support::{bits, config, floats, model};

#[test]
fn a_seed_decides_the_values_whatever_the_other_targets_are() {
    let model = model("llama3");
    for initialisation in [Initialisation::Kaiming, Initialisation::Gaussian, Initialisation::Pissa] {
        let make = |targets: &[&str], seed| {
            let config = LoraConfig { initialisation, ..config(targets) };
            Adapter::initial(&config, &model, seed).unwrap()
        };
        let (few, all) = (make(&["q_proj"], 5), make(&["all-linear"], 5));
        assert_eq!(bits(&all), bits(&make(&["all-linear"], 5)));
        for (site, layer) in &few.layers {
            assert_eq!(floats(&layer.lora.a), floats(&all.layers[site].lora.a));
        }
        if initialisation != Initialisation::Pissa {
            assert_ne!(bits(&few), bits(&make(&["q_proj"], 6)));
        }
    }
    // The numbers themselves are a promise: a run can be repeated by another version.
    let adapter = Adapter::initial(&config(&["q_proj"]), &model, 0).unwrap();
    let a = floats(&adapter.layers.values().next().unwrap().lora.a);
    assert_eq!(a[..3], PINNED);
}

/// Computed by a program of its own from what the module says about its generator.
const PINNED: [f32; 3] = [0.09342677, -0.043992735, -0.14362983];

#[test]
fn values_have_the_spread_of_their_kind() {
    let model = model("llama3");
    for (initialisation, rank) in [(Initialisation::Kaiming, 16), (Initialisation::Gaussian, 16)] {
        let config = LoraConfig { initialisation, rank, ..config(&["all-linear"]) };
        let adapter = Adapter::initial(&config, &model, 3).unwrap();
        for (site, layer) in &adapter.layers {
            assert!(floats(&layer.lora.b).iter().all(|value| *value == 0.0));
            let values = floats(&layer.lora.a);
            let count = values.len() as f32;
            let inputs = layer.lora.a.dims()[1] as f32;
            let variance = values.iter().map(|value| value * value).sum::<f32>() / count;
            let expected = match initialisation {
                Initialisation::Kaiming => 1.0 / (3.0 * inputs),
                _ => 1.0 / (rank * rank) as f32,
            };
            // Five standard errors of a variance.
            assert!(
                (variance / expected - 1.0).abs() < 5.0 * (2.0 / count).sqrt(),
                "{site}: {variance} {expected}"
            );
            let bound = 1.0 / inputs.sqrt();
            assert!(
                initialisation != Initialisation::Kaiming || values.iter().all(|value| value.abs() <= bound)
            );
        }
    }
}

#[test]
fn magnitudes_are_the_norms_of_the_weights_rows() {
    for (name, target, parts) in
        [("llama3", "up_proj", &["mlp.up_proj"][..]), ("phi3", "qkv_proj", &["self_attn.qkv_proj"][..])]
    {
        let model = model(name);
        let config = LoraConfig { method: Method::Dora, ..config(&[target]) };
        let adapter = Adapter::initial(&config, &model, 0).unwrap();
        let file = candle_core::safetensors::load(
            crate::support::model_folder(name).join("model.safetensors"),
            model.device(),
        );
        let file = file.unwrap();
        for (site, layer) in &adapter.layers {
            let weight: &Tensor = &file[&format!("model.layers.{}.{}.weight", site.layer, parts[0])];
            let norms = weight.to_dtype(DType::F64).unwrap().sqr().unwrap().sum(1).unwrap().sqrt().unwrap();
            let expected = norms.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
            let found = floats(layer.magnitude.as_ref().unwrap());
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found / expected - 1.0).abs() < 1e-6, "{found} {expected}");
            }
            assert_eq!(found.len(), expected.len());
        }
    }
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let model = model("llama3");
    let fails = |config: LoraConfig, words: &str| {
        let error = Adapter::initial(&config, &model, 0).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    fails(config(&["query"]), "no module of the model matches the target \"query\"; it has: q_proj");
    fails(LoraConfig { rank: 0, ..config(&["q_proj"]) }, "rank is 0");
    let pissa = LoraConfig { initialisation: Initialisation::Pissa, ..config(&["q_proj"]) };
    fails(LoraConfig { rank: 1000, ..pissa.clone() }, "at most the smaller side of the weight");
    fails(LoraConfig { method: Method::Dora, ..pissa }, "it goes with LoRA, not with DoRA");
}
