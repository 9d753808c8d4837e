//! On every device, against the definition.

use metal_candle_testkit::tolerance::Gate;

use super::*;
use crate::testing::{
    random,
    suite::{Case, Gradients, check},
};

const GATES: [Gate; 2] = [Gate::Norm, Gate::NormBackward];

/// Odd and even widths, one row and many, rows of a warp, of a group and longer than registers hold.
const SHAPES: [&[usize]; 8] =
    [&[1, 3], &[3, 7], &[2, 3, 64], &[5, 100], &[2, 896], &[9, 1024], &[2, 5000], &[1, 40_000]];

fn norm(weight: &Tensor, weight_offset: f32) -> RmsNorm {
    RmsNorm { weight: weight.clone(), epsilon: 1e-5, weight_offset }
}

fn inputs(shape: &[usize], count: usize) -> Vec<Tensor> {
    let mut inputs: Vec<Tensor> = (0..count).map(|index| random(index as u64, shape, DType::F64)).collect();
    inputs.push(random(9, shape[shape.len() - 1], DType::F64));
    inputs
}

#[test]
fn norm_matches_the_definition() {
    for shape in SHAPES {
        for offset in [0., 1.] {
            check(&Case {
                op: "rms_norm",
                name: format!("{shape:?}, offset {offset}"),
                gates: GATES,
                inputs: inputs(shape, 1),
                run: &|inputs| Ok(vec![rms_norm(&inputs[0], &norm(&inputs[1], offset))?]),
                gradients: Gradients::Recorded,
                definition: &|inputs| {
                    Ok(vec![reference::rms_norm(&inputs[0], &inputs[1], &norm(&inputs[1], offset))?])
                },
            });
        }
    }
}

#[test]
fn norm_of_a_residual_sum_matches_the_definition() {
    for shape in SHAPES {
        let scale = 0.7;
        check(&Case {
            op: "add_rms_norm",
            name: format!("{shape:?}"),
            gates: GATES,
            inputs: inputs(shape, 2),
            run: &|inputs| {
                let (sum, normed) = add_rms_norm(&inputs[0], &inputs[1], scale, &norm(&inputs[2], 1.))?;
                Ok(vec![sum, normed])
            },
            gradients: Gradients::Explicit(&|inputs, gradients| {
                let norm = norm(&inputs[2], 1.);
                let (sum, _) = add_rms_norm(&inputs[0], &inputs[1], scale, &norm)?;
                let residual = ResidualGradient { past: Some(&gradients[0]), scale: 1. };
                let dx = rms_norm_backward(&sum, &norm, &gradients[1], Some(residual))?;
                let dw = rms_norm_weight_backward(&sum, &norm, &gradients[1])?;
                Ok(vec![dx.clone(), (dx * f64::from(scale))?, dw])
            }),
            definition: &|inputs| {
                let norm = norm(&inputs[2], 1.);
                Ok(reference::add_rms_norm(&inputs[0], &inputs[1], scale, &inputs[2], &norm)?.to_vec())
            },
        });
    }
}

#[test]
fn sum_with_a_norm_matches_the_definition() {
    for shape in SHAPES {
        let scale = 0.7;
        check(&Case {
            op: "rms_norm_add",
            name: format!("{shape:?}"),
            gates: GATES,
            inputs: inputs(shape, 2),
            run: &|inputs| Ok(vec![rms_norm_add(&inputs[0], &inputs[1], scale, &norm(&inputs[2], 0.))?]),
            gradients: Gradients::Explicit(&|inputs, gradients| {
                let norm = norm(&inputs[2], 0.);
                let residual = ResidualGradient { past: None, scale };
                let d_delta = rms_norm_backward(&inputs[1], &norm, &gradients[0], Some(residual))?;
                let dw = rms_norm_weight_backward(&inputs[1], &norm, &gradients[0])?;
                Ok(vec![gradients[0].clone(), d_delta, (dw * f64::from(scale))?])
            }),
            definition: &|inputs| {
                let norm = norm(&inputs[2], 0.);
                Ok(vec![reference::rms_norm_add(&inputs[0], &inputs[1], scale, &inputs[2], &norm)?])
            },
        });
    }
}

#[test]
fn residual_ops_are_recorded_too() {
    let [residual, delta] = [1, 2].map(|seed| random(seed, (2, 8), DType::F32));
    let residual = candle_core::Var::from_tensor(&residual).unwrap();
    let norm = norm(&random(3, 8, DType::F32), 0.);
    let (sum, normed) = add_rms_norm(&residual, &delta, 1., &norm).unwrap();
    for result in [sum, normed, rms_norm_add(&delta, &residual, 1., &norm).unwrap()] {
        assert!(result.sum_all().unwrap().backward().unwrap().get(&residual).is_some());
    }
}

#[test]
fn strided_inputs_give_the_same() {
    let (x, norm) = (random(1, (6, 5), DType::F32), norm(&random(2, 6, DType::F32), 0.));
    let x = x.t().unwrap();
    let [strided, dense] = [&x, &x.contiguous().unwrap()].map(|x| rms_norm(x, &norm).unwrap());
    assert_eq!(crate::testing::bits(&strided), crate::testing::bits(&dense));
}
