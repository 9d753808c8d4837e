//! On every device, against the published rules in f64.

use candle_core::Device;
use metal_candle_testkit::tolerance::{Gate, Precision, assert_close, tolerance};

use super::{reference::Parameter, *};
use crate::testing::{message, random, suite::each_rig, wide};

const RULES: [(&str, Rule); 4] = [
    ("adamw", Rule::AdamW { betas: [0.9, 0.999], epsilon: 1e-8 }),
    ("adam", Rule::Adam { betas: [0.9, 0.95], epsilon: 1e-6 }),
    ("sgd", Rule::Sgd { momentum: 0.9 }),
    ("lion", Rule::Lion { betas: [0.9, 0.99] }),
];

/// A few steps over two ranges with rates of their own, the gradient clipped.
#[test]
fn rules_match_their_definition() {
    for (op, rule) in RULES {
        for (count, split) in [(1, 0), (7, 3), (1000, 400), (40_000, 16_384)] {
            each_rig(op, "forward", DType::F32, |device| {
                let values = random(1, count, DType::F32);
                let rows = Tensor::stack(
                    &[&values, &values.zeros_like().unwrap(), &values.zeros_like().unwrap()],
                    0,
                );
                let state = rows.unwrap().to_device(device).unwrap();
                let mut expected: Vec<Parameter> = wide(&values)
                    .into_iter()
                    .map(|value| Parameter { value, ..Parameter::default() })
                    .collect();
                for number in 1..=5 {
                    let gradient = random(10 + u64::from(number), count, DType::F32);
                    let longest = 0.5;
                    let length = wide(&gradient).iter().map(|slope| slope * slope).sum::<f64>().sqrt();
                    let shorter = (f64::from(longest) / (length + 1e-6)).min(1.);
                    for (index, (parameter, slope)) in expected.iter_mut().zip(wide(&gradient)).enumerate() {
                        let rate = if index < split { 0.01 } else { 0.02 };
                        reference::step(parameter, slope * shorter, rule, number, rate, 0.1);
                    }
                    let gradient = gradient.to_device(device).unwrap();
                    let norm = norm(&gradient).unwrap();
                    for (range, learning_rate) in [(0..split, 0.01), (split..count, 0.02)] {
                        let clip = Some(Clip { norm: &norm, longest });
                        let step = Step { rule, number, learning_rate, weight_decay: 0.1, clip };
                        update(&state, &gradient, range, &step).unwrap();
                    }
                }
                let found: Vec<f32> =
                    state.get(0).unwrap().to_device(&Device::Cpu).unwrap().to_vec1().unwrap();
                let expected: Vec<f32> = expected.iter().map(|parameter| parameter.value as f32).collect();
                assert_close(
                    &found,
                    &expected,
                    tolerance(Gate::Optimizer, Precision::F32),
                    format!("{op} {count}"),
                );
            });
        }
    }
}

#[test]
fn norms_match_the_definition() {
    for count in [1, 5, 1000, 16_384, 100_003] {
        each_rig("norm", "forward", DType::F32, |device| {
            let x = random(3, count, DType::F32);
            let expected = wide(&x).iter().map(|value| value * value).sum::<f64>().sqrt();
            let found = norm(&x.to_device(device).unwrap()).unwrap().to_device(&Device::Cpu).unwrap();
            let found: Vec<f32> = found.to_vec1().unwrap();
            assert_close(&found, &[expected as f32], tolerance(Gate::Optimizer, Precision::F32), count);
        });
    }
}

#[test]
fn only_the_range_is_changed() {
    let state = random(1, (3, 10), DType::F32);
    let before = wide(&state);
    let gradient = random(2, 10, DType::F32);
    let rule = Rule::AdamW { betas: [0.9, 0.999], epsilon: 1e-8 };
    let step = Step { rule, number: 1, learning_rate: 0.1, weight_decay: 0., clip: None };
    update(&state, &gradient, 3..5, &step).unwrap();
    for (index, (before, after)) in before.iter().zip(wide(&state)).enumerate() {
        assert_eq!(*before != after, (3..5).contains(&(index % 10)), "{index}");
    }
}

#[test]
fn wrong_arguments_are_named() {
    let (state, gradient) = (random(1, (3, 4), DType::F32), random(2, 4, DType::F32));
    let rule = Rule::Sgd { momentum: 0. };
    let step = Step { rule, number: 1, learning_rate: 0.1, weight_decay: 0., clip: None };
    let wrong = update(&state, &gradient, 2..5, &step);
    assert_eq!(message(wrong), "update: the range 2..5 is not within the 4 parameters");
    let wrong = update(&state.narrow(0, 0, 2).unwrap(), &gradient, 0..4, &step);
    assert_eq!(message(wrong), "update: `state` is [2, 4], expected [3, N]");
    let half = gradient.to_dtype(DType::F16).unwrap();
    assert!(
        message(update(&state, &half, 0..4, &step)).starts_with("update: `gradient` must be contiguous f32")
    );
    let zeroth = Step { number: 0, ..step };
    assert_eq!(message(update(&state, &gradient, 0..4, &zeroth)), "update: steps are counted from 1");
}
