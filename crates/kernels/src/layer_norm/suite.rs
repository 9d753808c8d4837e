//! On every device, against the definition.

use candle_core::Device;
use metal_candle_testkit::tolerance::Gate;

use super::*;
use crate::testing::{
    bits, message, random,
    suite::{Case, Gradients, check as check_case},
};

/// Odd and even widths, one row and many, rows of a warp, of a group and longer than registers hold.
const SHAPES: [&[usize]; 8] =
    [&[1, 3], &[3, 7], &[2, 3, 64], &[5, 100], &[70, 24], &[9, 1024], &[2, 5000], &[1, 40_000]];

fn norm(weight: &Tensor, bias: Option<&Tensor>) -> LayerNorm {
    LayerNorm { weight: weight.clone(), bias: bias.cloned(), epsilon: 1e-5 }
}

/// Off zero, so that the mean matters; a weight and a bias.
fn inputs(shape: &[usize]) -> Vec<Tensor> {
    let width = shape[shape.len() - 1];
    let x = (random(1, shape, DType::F64) + 0.5).unwrap();
    vec![x, random(2, width, DType::F64), random(3, width, DType::F64)]
}

#[test]
fn norm_matches_the_definition() {
    for shape in SHAPES {
        check_case(&Case {
            op: "layer_norm",
            name: format!("{shape:?}"),
            gates: [Gate::Norm, Gate::NormBackward],
            inputs: inputs(shape),
            run: &|inputs| Ok(vec![layer_norm(&inputs[0], &norm(&inputs[1], Some(&inputs[2])))?]),
            gradients: Gradients::Recorded,
            definition: &|inputs| {
                Ok(vec![reference::layer_norm(&inputs[0], &inputs[1], Some(&inputs[2]), 1e-5)?])
            },
        });
    }
}

#[test]
fn norm_without_a_bias_matches_the_definition() {
    for shape in SHAPES {
        check_case(&Case {
            op: "layer_norm",
            name: format!("{shape:?}, no bias"),
            gates: [Gate::Norm, Gate::NormBackward],
            inputs: inputs(shape)[..2].to_vec(),
            run: &|inputs| Ok(vec![layer_norm(&inputs[0], &norm(&inputs[1], None))?]),
            gradients: Gradients::Recorded,
            definition: &|inputs| Ok(vec![reference::layer_norm(&inputs[0], &inputs[1], None, 1e-5)?]),
        });
    }
}

#[test]
fn a_frozen_norm_still_passes_the_gradient_on() {
    let inputs = inputs(&[3, 8]);
    let x = candle_core::Var::from_tensor(&inputs[0].to_dtype(DType::F32).unwrap()).unwrap();
    let frozen = norm(&inputs[1].to_dtype(DType::F32).unwrap(), None);
    let y = layer_norm(&x, &frozen).unwrap();
    let gradients = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let dy = (y.detach() * 2.).unwrap();
    let expected = layer_norm_backward(x.as_tensor(), &frozen, &dy).unwrap();
    assert_eq!(bits(gradients.get(&x).unwrap()), bits(&expected));
    assert!(gradients.get(&frozen.weight).is_none());
}

#[test]
fn a_row_whose_first_numbers_are_far_from_its_mean_loses_nothing() {
    for (first, others) in [(1e4, 0.), (0., 3e3), (-1e3, 1e3)] {
        let place = Tensor::arange(0., 900., &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
        let is_first = place.lt(17.).unwrap().to_dtype(DType::F64).unwrap();
        let base = ((is_first * (first - others)).unwrap() + others).unwrap();
        let mut inputs = inputs(&[5, 900]);
        inputs[0] = inputs[0].broadcast_add(&base).unwrap();
        check_case(&Case {
            op: "layer_norm",
            name: format!("{first} first, then {others}"),
            gates: [Gate::Norm, Gate::NormBackward],
            inputs,
            run: &|inputs| Ok(vec![layer_norm(&inputs[0], &norm(&inputs[1], Some(&inputs[2])))?]),
            gradients: Gradients::None,
            definition: &|inputs| {
                Ok(vec![reference::layer_norm(&inputs[0], &inputs[1], Some(&inputs[2]), 1e-5)?])
            },
        });
    }
}

#[test]
fn all_gradients_at_once_are_those_made_apart() {
    for shape in [[1, 3], [70, 24], [131, 900]] {
        let (x, dy) = (random(1, &shape[..], DType::F32), random(2, &shape[..], DType::F32));
        let norm = norm(&random(3, shape[1], DType::F32), None);
        let (dx, dw, db) = layer_norm_backward_all(&x, &norm, &dy).unwrap();
        assert_eq!(bits(&dx), bits(&layer_norm_backward(&x, &norm, &dy).unwrap()));
        let (dw_apart, db_apart) = layer_norm_weight_backward(&x, &norm, &dy).unwrap();
        assert_eq!((bits(&dw), bits(&db)), (bits(&dw_apart), bits(&db_apart)));
    }
}

#[test]
fn a_row_does_not_depend_on_the_rows_beside_it() {
    let x = random(3, (100, 900), DType::F32);
    let norm = norm(&random(4, 900, DType::BF16), None);
    let whole = bits(&layer_norm(&x, &norm).unwrap());
    for row in [0, 57, 99] {
        let alone = layer_norm(&x.narrow(0, row, 1).unwrap(), &norm).unwrap();
        assert_eq!(bits(&alone), whole[row * 900..(row + 1) * 900]);
    }
}

#[test]
fn no_rows_are_fine() {
    let (x, norm) = (random(1, (0, 5), DType::F32), norm(&random(2, 5, DType::F32), None));
    assert_eq!(layer_norm(&x, &norm).unwrap().dims(), [0, 5]);
    let (dw, db) = layer_norm_weight_backward(&x, &norm, &x).unwrap();
    assert_eq!((bits(&dw), bits(&db)), (vec![0; 5], vec![0; 5]));
}

#[test]
fn wrong_arguments_are_named() {
    let (x, weight) = (random(1, (3, 8), DType::F32), random(2, 8, DType::F32));
    let short = random(3, 7, DType::F32);
    let wrong = layer_norm(&x, &norm(&short, None));
    assert_eq!(message(wrong), "layer_norm: `weight` is [7], expected [8] for `x` [3, 8]");
    let wrong = layer_norm(&x, &norm(&weight, Some(&short)));
    assert_eq!(message(wrong), "layer_norm: `bias` is [7], expected [8] for `x` [3, 8]");
    let wrong = layer_norm_backward(&x, &norm(&weight, None), &weight);
    assert_eq!(message(wrong), "layer_norm_backward: `dy` is ([8], F32), expected ([3, 8], F32) like `x`");
}
