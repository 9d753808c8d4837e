//! On every device, against the definition.

use candle_core::{DType, Var};
use metal_candle_testkit::tolerance::Gate;

use super::*;
use crate::{
    pool,
    simd::{available, with_level},
    testing::{
        bits, random,
        suite::{Case, Gradients, check},
    },
};

const GATES: [Gate; 2] = [Gate::Linear, Gate::LinearBackward];

/// `x` without its last dimension, K and N: one row and many, tiles that are full and not, several panels.
const SHAPES: [(&[usize], usize, usize); 8] = [
    (&[1], 1, 3),
    (&[3], 7, 5),
    (&[2, 3], 64, 40),
    (&[9], 33, 100),
    (&[30], 100, 33),
    (&[5, 10], 31, 130),
    (&[70], 1100, 20),
    (&[40], 20, 1100),
];

fn projection(inputs: &[Tensor]) -> Projection {
    Projection { weight: inputs[1].clone(), bias: inputs.get(2).cloned() }
}

fn inputs((rows, inputs, outputs): (&[usize], usize, usize), has_bias: bool) -> Vec<Tensor> {
    let mut tensors =
        vec![random(1, [rows, &[inputs]].concat(), DType::F64), random(2, (outputs, inputs), DType::F64)];
    if has_bias {
        tensors.push(random(3, outputs, DType::F64));
    }
    tensors
}

#[test]
fn linear_and_its_gradients_match_the_definition() {
    for shape in SHAPES {
        for has_bias in [false, true] {
            check(&Case {
                op: "linear",
                name: format!("{shape:?}, bias {has_bias}"),
                gates: GATES,
                inputs: inputs(shape, has_bias),
                run: &|inputs| Ok(vec![linear(&inputs[0], &projection(inputs))?]),
                gradients: Gradients::Recorded,
                definition: &|inputs| Ok(vec![reference::linear(&inputs[0], &inputs[1], inputs.get(2))?]),
            });
        }
    }
}

#[test]
fn explicit_gradients_match_the_definition() {
    for shape in SHAPES {
        check(&Case {
            op: "linear",
            name: format!("{shape:?}, explicit"),
            gates: GATES,
            inputs: inputs(shape, true),
            run: &|inputs| Ok(vec![linear(&inputs[0], &projection(inputs))?]),
            gradients: Gradients::Explicit(&|inputs, dy| {
                Ok(vec![
                    linear_backward(&dy[0], &projection(inputs))?,
                    linear_weight_backward(&inputs[0], &dy[0])?,
                    linear_bias_backward(&dy[0])?,
                ])
            }),
            definition: &|inputs| Ok(vec![reference::linear(&inputs[0], &inputs[1], inputs.get(2))?]),
        });
    }
}

#[test]
fn gated_layers_match_the_definition() {
    for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
        check(&Case {
            op: "gated_linear",
            name: format!("{activation:?}"),
            gates: [Gate::GatedMlp, Gate::GatedMlp],
            inputs: [(11, 40), (50, 40), (50, 40)]
                .into_iter()
                .enumerate()
                .map(|(seed, shape)| (random(seed as u64, shape, DType::F64) * 0.5).unwrap())
                .collect(),
            run: &|inputs| {
                let [gate, up] = [1, 2].map(|index| Projection { weight: inputs[index].clone(), bias: None });
                Ok(vec![gated_linear(&inputs[0], &gate, &up, activation)?])
            },
            gradients: Gradients::Recorded,
            definition: &|inputs| {
                Ok(vec![reference::gated_linear(&inputs[0], &inputs[1], &inputs[2], activation)?])
            },
        });
    }
}

#[test]
fn weights_of_any_dtype_are_widened_backwards_too() {
    let dy = random(1, (30, 50), DType::F32);
    for level in available() {
        for dtype in [DType::BF16, DType::F16] {
            let weight = random(2, (50, 70), dtype);
            let [half, wide] = [weight.clone(), weight.to_dtype(DType::F32).unwrap()].map(|weight| {
                let projection = Projection { weight, bias: None };
                with_level(level, || linear_backward(&dy, &projection)).unwrap()
            });
            assert_eq!(bits(&half), bits(&wide), "{level} {dtype:?}");
        }
    }
}

#[test]
fn a_frozen_weight_gets_no_gradient() {
    let x = Var::from_tensor(&random(1, (4, 6), DType::F32)).unwrap();
    let frozen = Projection { weight: random(2, (5, 6), DType::F32), bias: Some(random(3, 5, DType::F32)) };
    let gradients = linear(&x, &frozen).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(gradients.get(&x).is_some());
    assert!(
        gradients.get(&frozen.weight).is_none() && gradients.get(frozen.bias.as_ref().unwrap()).is_none()
    );
}

#[test]
fn more_outputs_than_are_packed_at_once_are_summed() {
    // 8 M packed numbers at most: two rounds and a bit.
    let (rows, outputs) = (9000, 2000);
    let dy = random(1, (rows, outputs), DType::F32);
    let projection = Projection { weight: random(2, (outputs, 3), DType::F32), bias: None };
    let found = linear_backward(&dy, &projection).unwrap();
    let expected = dy.matmul(&projection.weight).unwrap();
    let [found, expected]: [Vec<f32>; 2] =
        [found, expected].map(|dx| dx.flatten_all().unwrap().to_vec1().unwrap());
    let tolerance = metal_candle_testkit::tolerance::tolerance(
        Gate::LinearBackward,
        metal_candle_testkit::tolerance::Precision::F32,
    );
    metal_candle_testkit::tolerance::assert_close(&found, &expected, tolerance, "dx");
}

#[test]
fn gradients_do_not_depend_on_the_number_of_threads() {
    let (x, dy) = (random(1, (300, 90), DType::F32), random(2, (300, 70), DType::F32));
    let projection = Projection { weight: random(3, (70, 90), DType::BF16), bias: None };
    let all = || {
        [
            linear_backward(&dy, &projection).unwrap(),
            linear_weight_backward(&x, &dy).unwrap(),
            linear_bias_backward(&dy).unwrap(),
        ]
        .map(|tensor| bits(&tensor))
    };
    let expected = all();
    for threads in [1, 2, 5] {
        pool::tests::with_threads(threads, || assert_eq!(all(), expected, "{threads} threads"));
    }
}

#[test]
fn gradients_of_no_rows_and_no_inputs_are_right() {
    let dy = random(1, (0, 5), DType::F32);
    let projection = Projection { weight: random(2, (5, 7), DType::F32), bias: None };
    assert_eq!(linear_backward(&dy, &projection).unwrap().dims(), [0, 7]);
    let dw = linear_weight_backward(&random(3, (0, 7), DType::F32), &dy).unwrap();
    assert_eq!(dw.dims(), [5, 7]);
    assert!(bits(&dw).into_iter().all(|bits| bits == 0));
    let nothing = Projection { weight: random(2, (0, 7), DType::F32), bias: None };
    let dx = linear_backward(&random(1, (3, 0), DType::F32), &nothing).unwrap();
    assert!(dx.dims() == [3, 7] && bits(&dx).into_iter().all(|bits| bits == 0));
}

#[test]
fn a_wrong_gradient_is_named() {
    let projection = Projection { weight: random(2, (5, 7), DType::F32), bias: None };
    let error = linear_backward(&random(1, (3, 6), DType::F32), &projection).unwrap_err().to_string();
    assert!(error.contains("[5, 7]") && error.contains("[3, 6]"), "{error}");
    let error = linear_weight_backward(&random(1, (3, 7), DType::F32), &random(1, (4, 5), DType::F32));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("[4, 5]") && error.contains("[3, 7]"), "{error}");
}
