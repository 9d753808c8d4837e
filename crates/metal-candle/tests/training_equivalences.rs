//! What must not change a gradient: how sequences are packed, how a step is cut into batches, what is recomputed.

#![allow(clippy::unwrap_used)]

#[path = "support/training.rs"]
mod training;

use std::collections::BTreeMap;

use metal_candle::{
    lora::{ActiveAdapter, Adapter, Initialisation, LoraConfig, Method},
    model::{LogitsFor, Model, SequenceInput},
    train::{Optimizer, OptimizerConfig, Recompute, Rows, Trainer, TrainerOptions, Update},
};
use metal_candle_testkit::{
    golden,
    tolerance::{Gate, Precision, assert_close, tolerance},
};
use training::{IGNORED, OwnedRows, load};

/// Llama, biases, norms on queries and keys, soft caps and windows, fused weights, multipliers, norms after.
const MODELS: [&str; 7] = ["llama3", "qwen2", "qwen3", "gemma2", "phi3", "granite", "olmo2"];

#[test]
fn packed_sequences_cost_what_they_cost_alone() {
    for name in MODELS {
        for method in [Method::Lora, Method::Dora] {
            let sequences = sequences(name);
            let mut together = trainer(name, method, 0.0, Recompute::NONE);
            let packed = together.accumulate(&OwnedRows::packed(&sequences).rows(), 0).unwrap();
            let mut alone = trainer(name, method, 0.0, Recompute::NONE);
            let (mut sum, mut targets) = (0.0, 0);
            for sequence in &sequences {
                let loss =
                    alone.accumulate(&OwnedRows::packed(std::slice::from_ref(sequence)).rows(), 0).unwrap();
                (sum, targets) = (sum + loss.sum, targets + loss.targets);
            }
            assert_eq!(packed.targets, targets);
            assert_close(&[packed.sum as f32], &[sum as f32], tolerance(Gate::Loss, Precision::F32), name);
            let limit = tolerance(Gate::ModelBackward, Precision::F32);
            for (parameter, expected) in gradients(&alone) {
                assert_close(
                    &gradients(&together)[&parameter],
                    &expected,
                    limit,
                    format!("{name}: {parameter}"),
                );
            }
        }
    }
}

#[test]
fn a_step_in_pieces_moves_the_parameters_like_a_whole_one() {
    for optimizer in [Optimizer::AdamW, Optimizer::Adam, Optimizer::Sgd, Optimizer::Lion] {
        let sequences = sequences("qwen3");
        let options = |_| TrainerOptions {
            optimizer: OptimizerConfig { name: optimizer, ..OptimizerConfig::default() },
            ..TrainerOptions::default()
        };
        let values = |pieces: &[&[Vec<u32>]]| {
            let mut trainer = with("qwen3", &config(Method::Lora, 0.0), options(()));
            for number in 1..=3 {
                let mut targets = 0;
                for piece in pieces {
                    targets += trainer.accumulate(&OwnedRows::packed(piece).rows(), 0).unwrap().targets;
                }
                trainer.update(&Update { number, learning_rate: 1e-2, targets }).unwrap();
            }
            state(&trainer)
        };
        // Pieces of different numbers of tokens: each token counts alike, not each piece.
        let (whole, pieces) = (values(&[&sequences]), values(&[&sequences[..2], &sequences[2..]]));
        // Lion takes signs: where a gradient is nothing but rounding, so is its sign.
        let limit = if optimizer == Optimizer::Lion { Gate::ModelBackward } else { Gate::TenSteps };
        for (name, expected) in whole {
            let what = format!("{optimizer:?}: {name}");
            assert_close(&pieces[&name], &expected, tolerance(limit, Precision::F32), what);
        }
    }
}

#[test]
fn recomputing_changes_no_bit() {
    for name in MODELS {
        for method in [Method::Lora, Method::Dora] {
            let rows = OwnedRows::packed(&sequences(name));
            let found = |recompute| {
                let mut trainer = trainer(name, method, 0.25, recompute);
                let loss = trainer.accumulate(&rows.rows(), 7).unwrap();
                (loss.sum.to_bits(), gradients(&trainer))
            };
            let kept = found(Recompute::NONE);
            assert!(kept == found(Recompute::ALL), "{name}, {method:?}: all");
            for some in [(1, 0), (0, 1), (0, usize::MAX), (1, 1)] {
                let (blocks, mlps) = some;
                assert!(kept == found(Recompute { blocks, mlps }), "{name}, {method:?}: {some:?}");
            }
        }
    }
}

#[test]
fn dropout_is_the_same_for_the_same_draw_only() {
    let rows = OwnedRows::packed(&sequences("llama3"));
    let found = |probability, draw| {
        let mut trainer = trainer("llama3", Method::Lora, probability, Recompute::NONE);
        trainer.accumulate(&rows.rows(), draw).unwrap();
        gradients(&trainer)
    };
    assert!(found(0.5, 3) == found(0.5, 3));
    assert!(found(0.5, 3) != found(0.5, 4));
    assert!(found(0.5, 3) != found(0.0, 3));
    assert!(found(0.0, 3) == found(0.0, 4));
}

#[test]
fn the_mean_over_many_draws_is_the_gradient_without_dropout() {
    // B is zero: the loss does not depend on what is left out, and the gradient of B is linear in it.
    let rows = OwnedRows::packed(&sequences("llama3"));
    let initial = |dropout| LoraConfig { dropout, ..config(Method::Lora, dropout) };
    let gradient = |dropout, draw| {
        let model = load("llama3");
        let adapter = Adapter::initial(&initial(dropout), &model, 5).unwrap();
        let mut trainer = Trainer::lora(model, &adapter, TrainerOptions::default()).unwrap();
        trainer.accumulate(&rows.rows(), draw).unwrap();
        gradients(&trainer)
    };
    let expected = gradient(0.0, 0);
    let mut sums: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    const DRAWS: u64 = 200;
    for draw in 0..DRAWS {
        for (name, values) in gradient(0.3, draw) {
            let sum = sums.entry(name).or_insert_with(|| vec![0.0; values.len()]);
            sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value / DRAWS as f32);
        }
    }
    for (name, expected) in expected.iter().filter(|(name, _)| name.contains("lora_B")) {
        let length = |values: &[f32]| values.iter().map(|value| value * value).sum::<f32>().sqrt();
        let apart: Vec<f32> = sums[name].iter().zip(expected).map(|(found, value)| found - value).collect();
        assert!(length(&apart) < 0.2 * length(expected), "{name}");
    }
}

#[test]
fn an_adapter_whose_b_is_zero_changes_no_bit() {
    for name in MODELS {
        let model = load(name);
        let tokens: Vec<u32> = sequences(name).concat();
        for method in [Method::Lora, Method::Dora] {
            let adapter = Adapter::initial(&config(method, 0.0), &model, 3).unwrap();
            let active = ActiveAdapter::new(&adapter, &model).unwrap();
            let (base, adapted) = (logits(&model, &tokens, None), logits(&model, &tokens, Some(&active)));
            if method == Method::Lora {
                assert!(base == adapted, "{name}");
            } else {
                // A row divided by its norm and multiplied by it again.
                assert_close(&adapted, &base, tolerance(Gate::SameModel, Precision::F32), name);
            }
        }
    }
}

#[test]
fn everything_that_is_trained_has_a_gradient_and_nothing_else() {
    for name in MODELS {
        for method in [Method::Lora, Method::Dora] {
            let mut trainer = trainer(name, method, 0.0, Recompute::NONE);
            let frozen = logits(trainer.model(), &sequences(name)[0], None);
            let loss = trainer.accumulate(&OwnedRows::packed(&sequences(name)).rows(), 0).unwrap();
            let gradients = gradients(&trainer);
            assert_eq!(gradients.len(), trainer.parameters().entries().count());
            for (parameter, values) in gradients {
                let parameter_is_used = values.iter().any(|&value| value != 0.0);
                assert!(
                    parameter_is_used && values.iter().all(|value| value.is_finite()),
                    "{name}: {parameter}"
                );
            }
            let before = state(&trainer);
            trainer.update(&Update { number: 1, learning_rate: 1e-2, targets: loss.targets }).unwrap();
            for (parameter, values) in state(&trainer) {
                assert!(values != before[&parameter], "{name}: {parameter} has not moved");
            }
            assert!(frozen == logits(trainer.model(), &sequences(name)[0], None), "{name}: the model moved");
        }
    }
}

#[test]
fn only_the_blocks_from_the_first_adapter_on_are_trained() {
    let last = LoraConfig { last_layers: Some(1), ..config(Method::Lora, 0.0) };
    let all = config(Method::Lora, 0.0);
    let rows = OwnedRows::packed(&sequences("llama3"));
    let found = |config: &LoraConfig| {
        let mut trainer = with("llama3", config, TrainerOptions::default());
        trainer.accumulate(&rows.rows(), 0).unwrap();
        gradients(&trainer)
    };
    let (last, all) = (found(&last), found(&all));
    assert!(last.keys().all(|name| name.contains("layers.1.")) && last.len() < all.len());
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing_and_is_forgotten() {
    let rows = OwnedRows::packed(&sequences("llama3"));
    let mut trainer = trainer("llama3", Method::Lora, 0.0, Recompute::NONE);
    let mut saved = trainer.parameters().state().unwrap();
    let good = saved.clone();
    saved[0].state = (&saved[0].state * f64::INFINITY).unwrap();
    trainer.restore(&saved).unwrap();
    trainer.accumulate(&rows.rows(), 0).unwrap();
    let before = state(&trainer);
    let updated = trainer.update(&Update { number: 1, learning_rate: 1e-2, targets: 1 }).unwrap();
    assert!(!updated.gradient_norm.is_finite());
    assert!(format!("{before:?}") == format!("{:?}", state(&trainer)));
    trainer.restore(&good).unwrap();
    let loss = trainer.accumulate(&rows.rows(), 0).unwrap();
    let updated = trainer.update(&Update { number: 1, learning_rate: 1e-2, targets: loss.targets }).unwrap();
    assert!(updated.gradient_norm.is_finite());
}

#[test]
fn what_does_not_belong_to_a_run_is_refused_by_name() {
    let mut trainer = trainer("llama3", Method::Lora, 0.0, Recompute::NONE);
    let mut saved = trainer.parameters().state().unwrap();
    saved[0].name = "other".to_owned();
    saved[1].state = saved[1].state.narrow(1, 0, 1).unwrap();
    let (missing, wrong) = (trainer.parameters().state().unwrap()[0].name.clone(), saved[1].name.clone());
    let message = trainer.restore(&saved).unwrap_err().to_string();
    for part in ["other: not trained", &format!("{missing}: not saved"), &format!("{wrong}: [")] {
        assert!(message.contains(part), "{message}");
    }
    let rows = Rows { tokens: &[], targets: &[], starts: &[0] };
    assert!(trainer.accumulate(&rows, 0).is_err());
    let beyond = Rows { tokens: &[1, 1_000_000], targets: &[1, IGNORED], starts: &[0, 2] };
    assert!(trainer.accumulate(&beyond, 0).unwrap_err().to_string().contains("1000000"));
}

fn config(method: Method, dropout: f32) -> LoraConfig {
    LoraConfig { method, dropout, rank: 3, targets: vec!["all-linear".to_owned()], ..LoraConfig::default() }
}

/// A trainer whose B is not zero, so that nothing is hidden.
fn with(name: &str, config: &LoraConfig, options: TrainerOptions) -> Trainer {
    let model = load(name);
    let mut adapter = Adapter::initial(config, &model, 11).unwrap();
    // Values of A serve as those of B.
    let gaussian = LoraConfig { initialisation: Initialisation::Gaussian, ..config.clone() };
    let other = Adapter::initial(&gaussian, &model, 12).unwrap();
    for (site, layer) in &mut adapter.layers {
        let shape = layer.lora.b.dims().to_vec();
        let values = other.layers[site].lora.a.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let count = shape.iter().product();
        let filled: Vec<f32> = values.iter().cycle().take(count).map(|value| 0.3 * value).collect();
        layer.lora.b = candle_core::Tensor::from_vec(filled, shape, model.device()).unwrap();
    }
    Trainer::lora(model, &adapter, options).unwrap()
}

fn trainer(name: &str, method: Method, dropout: f32, recompute: Recompute) -> Trainer {
    with(name, &config(method, dropout), TrainerOptions { recompute, seed: 9, ..TrainerOptions::default() })
}

/// Token sequences that fit a golden model's vocabulary.
fn sequences(name: &str) -> Vec<Vec<u32>> {
    let prompt = golden::model(name).ids("prompt").to_vec();
    let cut =
        |length: usize, step: usize| prompt.iter().cycle().step_by(step).take(length).copied().collect();
    vec![cut(9, 1), cut(5, 2), cut(14, 3), cut(2, 1)]
}

fn gradients(trainer: &Trainer) -> BTreeMap<String, Vec<f32>> {
    let names = trainer.parameters().entries().map(|parameter| parameter.name.clone());
    let of = |name: String| {
        let gradient = trainer.gradient(&name).unwrap().flatten_all().unwrap();
        (name, gradient.to_vec1().unwrap())
    };
    names.map(of).collect()
}

fn state(trainer: &Trainer) -> BTreeMap<String, Vec<f32>> {
    let state = trainer.parameters().state().unwrap();
    let values =
        |tensor: &candle_core::Tensor| tensor.get(0).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    state.iter().map(|saved| (saved.name.clone(), values(&saved.state))).collect()
}

fn logits(model: &Model, tokens: &[u32], adapter: Option<&ActiveAdapter>) -> Vec<f32> {
    let mut cache = model.new_cache();
    let input = SequenceInput { tokens, cache: &mut cache, logits: LogitsFor::All, adapter };
    model.forward(&mut [input]).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}
