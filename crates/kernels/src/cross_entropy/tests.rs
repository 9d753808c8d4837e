//! What no definition shows: parts that agree with each other, extreme numbers, and errors.

use candle_core::Var;
use metal_candle_testkit::{
    golden::Tensors,
    tolerance::{Gate, Precision, assert_close, tolerance},
};

use super::*;
use crate::{
    pool,
    simd::available,
    testing::{bits, message, random, suite::rigs, wide},
};

fn head(vocabulary: usize, width: usize) -> Projection {
    Projection { weight: random(2, (vocabulary, width), DType::F32), bias: None }
}

#[test]
fn pytorch_finds_the_same() {
    let golden = Tensors::open("ops/cross_entropy.safetensors");
    for case in ["plain", "smoothed", "gemma", "all"] {
        let floats = |name: &str| &golden.floats(&format!("{case}.{name}")).values;
        let &[label_smoothing, z_loss, soft_cap, logit_scale] = floats("params").as_slice() else {
            panic!("{case}: four parameters");
        };
        let soft_cap = (soft_cap > 0.).then_some(soft_cap);
        let params = LossParams { label_smoothing, z_loss, soft_cap, logit_scale, chunk_tokens: None };
        let target = |target: &f32| if *target < 0. { IGNORED } else { *target as u32 };
        let targets: Vec<u32> = floats("targets").iter().map(target).collect();
        for rig in rigs() {
            rig.with(|| {
                let tensor = |name, rows| Tensor::from_slice(floats(name), (rows, 12), rig.device()).unwrap();
                let head = Projection { weight: tensor("weight", 50), bias: None };
                let hidden = tensor("hidden", 7);
                let run =
                    lm_head_loss_and_gradients(&hidden, &head, &targets, &params, HeadWeight::Trainable);
                let (loss, gradients) = run.unwrap();
                let check = |found: &Tensor, name: &str, gate| {
                    let found: Vec<f32> = found.flatten_all().unwrap().to_vec1().unwrap();
                    let allowed = tolerance(gate, Precision::F32);
                    assert_close(&found, floats(name), allowed, format!("{case}, {name} on {rig}"));
                };
                check(&loss.losses, "losses", Gate::CrossEntropy);
                check(&gradients.hidden, "d_hidden", Gate::CrossEntropyBackward);
                check(gradients.weight.as_ref().unwrap(), "d_weight", Gate::CrossEntropyBackward);
            });
        }
    }
}

#[test]
fn ignored_targets_cost_and_change_nothing() {
    let params = LossParams::default();
    for rig in rigs() {
        rig.with(|| {
            let on_rig = |tensor: Tensor| tensor.to_device(rig.device()).unwrap();
            let hidden = on_rig(random(1, (40, 24), DType::F32));
            let head = Projection { weight: on_rig(head(300, 24).weight), bias: None };
            let targets: Vec<u32> =
                (0..40).map(|token| if token < 20 { token * 3 } else { IGNORED }).collect();
            let run = |hidden: &Tensor, targets: &[u32]| {
                lm_head_loss_and_gradients(hidden, &head, targets, &params, HeadWeight::Trainable).unwrap()
            };
            let (all, all_gradients) = run(&hidden, &targets);
            let (some, some_gradients) = run(&hidden.narrow(0, 0, 20).unwrap(), &targets[..20]);
            assert_eq!((all.count, some.count), (20, 20));
            assert_eq!(all.sum().unwrap(), some.sum().unwrap());
            assert_eq!(wide(&all.losses)[20..], [0.; 20]);
            assert_eq!(wide(&all_gradients.hidden)[..20 * 24], wide(&some_gradients.hidden));
            assert!(wide(&all_gradients.hidden)[20 * 24..].iter().all(|value| *value == 0.));
            let [left, right] =
                [all_gradients, some_gradients].map(|gradients| wide(&gradients.weight.unwrap()));
            assert_eq!(left, right);

            let (none, gradients) = run(&hidden, &[IGNORED; 40]);
            assert_eq!((none.count, none.sum().unwrap()), (0, 0.));
            let zeros = |tensor: &Tensor, count| wide(tensor) == vec![0.; count];
            assert!(zeros(&gradients.hidden, 40 * 24) && zeros(&gradients.weight.unwrap(), 300 * 24));
        });
    }
}

#[test]
fn with_and_without_gradients_the_losses_are_the_same() {
    let (hidden, head) = (random(1, (33, 40), DType::F32), head(5000, 40));
    let targets: Vec<u32> = (0..33).map(|token| token * 150).collect();
    let params = LossParams { label_smoothing: 0.1, soft_cap: Some(5.), ..LossParams::default() };
    let loss = lm_head_loss(&hidden, &head, &targets, &params).unwrap();
    let run = |weight| lm_head_loss_and_gradients(&hidden, &head, &targets, &params, weight).unwrap();
    let [frozen, trainable] = [HeadWeight::Frozen, HeadWeight::Trainable].map(run);
    assert_eq!(bits(&loss.losses), bits(&frozen.0.losses));
    assert_eq!(bits(&frozen.1.hidden), bits(&trainable.1.hidden));
    assert!(frozen.1.weight.is_none() && trainable.1.weight.is_some());
}

#[test]
fn gradients_in_the_place_of_hidden_states_are_the_same() {
    for rig in rigs() {
        rig.with(|| {
            let on_rig = |tensor: Tensor| tensor.to_device(rig.device()).unwrap();
            let hidden = on_rig(random(1, (40, 24), DType::F32));
            let head = Projection { weight: on_rig(head(300, 24).weight), bias: None };
            let params = LossParams { chunk_tokens: Some(16), ..LossParams::default() };
            let all: Vec<u32> = (0..40).map(|token| token * 3).collect();
            let some = all.iter().map(|target| if target % 2 == 0 { *target } else { IGNORED }).collect();
            for targets in [all, some] {
                let weight = HeadWeight::Trainable;
                let (_, own) = lm_head_loss_and_gradients(&hidden, &head, &targets, &params, weight).unwrap();
                let given = hidden.copy().unwrap();
                let (_, in_place) =
                    lm_head_loss_and_gradients_in_place(given, &head, &targets, &params, weight).unwrap();
                assert_eq!(bits(&own.hidden), bits(&in_place.hidden), "{rig}");
                assert_eq!(bits(&own.weight.unwrap()), bits(&in_place.weight.unwrap()), "{rig}");
            }
        });
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    // Tokens for two chunks.
    let (hidden, head) = (random(1, (600, 32), DType::F32), head(3000, 32));
    let targets: Vec<u32> = (0..600).map(|token| token * 5).collect();
    let run = |threads| {
        pool::set_threads(threads);
        let params = LossParams { label_smoothing: 0.1, ..LossParams::default() };
        let result =
            lm_head_loss_and_gradients(&hidden, &head, &targets, &params, HeadWeight::Trainable).unwrap();
        pool::set_threads(0);
        [bits(&result.0.losses), bits(&result.1.hidden), bits(&result.1.weight.unwrap())]
    };
    assert_eq!(run(1), run(3));
}

/// Logits far apart, and growing along the vocabulary, so that sums are scaled to new references on the way.
#[test]
fn large_logits_neither_overflow_nor_lose_the_small() {
    for level in available() {
        crate::simd::with_level(level, || {
            let vocabulary = 1000;
            let weights = (0..vocabulary).map(|index| index as f32 * 0.5 - 300.);
            let weight = Tensor::from_iter(weights, &Device::Cpu).unwrap().reshape((vocabulary, 1)).unwrap();
            let head = Projection { weight: weight.clone(), bias: None };
            for (hidden, target) in [(1f32, 999), (1., 0), (-1., 0), (-1., 999), (0., 7), (100., 500)] {
                let x = Tensor::new(&[[hidden]], &Device::Cpu).unwrap();
                let params = LossParams::default();
                let (loss, gradients) =
                    lm_head_loss_and_gradients(&x, &head, &[target], &params, HeadWeight::Frozen).unwrap();
                let x = Var::from_tensor(&x.to_dtype(DType::F64).unwrap()).unwrap();
                let weight = weight.to_dtype(DType::F64).unwrap();
                let expected = reference::losses(&x, &weight, None, &[target], &params).unwrap();
                let expected_gradient = expected.sum_all().unwrap().backward().unwrap();
                let close = |found: f64, expected: f64| {
                    let allowed = 3e-6 * expected.abs().max(300.);
                    assert!(
                        (found - expected).abs() <= allowed,
                        "{level}: {hidden} {target}: {found}, {expected}"
                    );
                };
                close(wide(&loss.losses)[0], wide(&expected)[0]);
                close(wide(&gradients.hidden)[0], wide(expected_gradient.get(&x).unwrap())[0]);
            }
        });
    }
}

#[test]
fn what_is_not_a_number_shows_in_its_own_token_only() {
    for rig in rigs() {
        rig.with(|| {
            let mut values: Vec<f32> =
                bits(&random(1, (3, 8), DType::F32)).into_iter().map(f32::from_bits).collect();
            values[8] = f32::NAN;
            let hidden =
                Tensor::from_vec(values, (3, 8), &Device::Cpu).unwrap().to_device(rig.device()).unwrap();
            let head =
                Projection { weight: head(500, 8).weight.to_device(rig.device()).unwrap(), bias: None };
            let losses = lm_head_loss(&hidden, &head, &[1, 2, 3], &LossParams::default()).unwrap().losses;
            let nan: Vec<bool> = wide(&losses).into_iter().map(f64::is_nan).collect();
            assert_eq!(nan, [false, true, false], "{rig}");
        });
    }
}

#[test]
fn a_frozen_head_gets_no_gradient_from_the_graph() {
    let (hidden, head) = (Var::from_tensor(&random(1, (4, 8), DType::F32)).unwrap(), head(20, 8));
    let loss = cross_entropy(&hidden, &head, &[1, 2, IGNORED, 3], &LossParams::default()).unwrap();
    let store = loss.backward().unwrap();
    assert!(store.get(&hidden).is_some() && store.get(&head.weight).is_none());
}

#[test]
fn wrong_arguments_are_named() {
    let (hidden, good) = (random(1, (2, 8), DType::F32), LossParams::default());
    let error = |head: &Projection, targets: &[u32], params: &LossParams| {
        message(lm_head_loss(&hidden, head, targets, params))
    };
    let expected = "cross_entropy: the head's weight is [20, 9], expected [V, 8] for `hidden` [2, 8]";
    assert_eq!(error(&head(20, 9), &[1, 2], &good), expected);
    assert_eq!(error(&head(20, 8), &[1], &good), "cross_entropy: 1 targets for 2 rows of `hidden`");
    let expected = "cross_entropy: target 20 at index 1 is outside the vocabulary of 20";
    assert_eq!(error(&head(20, 8), &[1, 20], &good), expected);
    let biased = Projection { bias: Some(random(1, 19, DType::F32)), ..head(20, 8) };
    assert_eq!(error(&biased, &[1, 2], &good), "cross_entropy: the head's bias is [19], expected [20]");
    for (params, name) in [
        (LossParams { label_smoothing: 1.5, ..good }, "label_smoothing"),
        (LossParams { z_loss: f32::NAN, ..good }, "z_loss"),
        (LossParams { soft_cap: Some(0.), ..good }, "soft_cap"),
        (LossParams { logit_scale: 0., ..good }, "logit_scale"),
        (LossParams { chunk_tokens: Some(0), ..good }, "chunk_tokens"),
    ] {
        assert!(error(&head(20, 8), &[1, 2], &params).contains(name), "{name}");
    }
    let flat = hidden.flatten_all().unwrap();
    let found = message(lm_head_loss(&flat, &head(20, 8), &[], &good));
    assert_eq!(found, "cross_entropy: `hidden` is [16], expected [T, D]");
    let found = message(cross_entropy(&hidden, &head(20, 8), &[IGNORED; 2], &good));
    assert_eq!(found, "cross_entropy: every target is ignored, and the mean of nothing is undefined");
}
