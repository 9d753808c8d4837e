//! On every device, against the definition.

use metal_candle_testkit::tolerance::Gate;

use super::*;
use crate::testing::{
    random,
    suite::{Case, Gradients, check},
};

const GATES: [Gate; 2] = [Gate::CrossEntropy, Gate::CrossEntropyBackward];

/// `[T, D, V]`: one token and many, odd sizes, vocabularies that are no multiple of an access, tokens for several
/// blocks, vocabularies for several tiles and segments, rows of a group that registers hold and that they do not.
const SHAPES: [[usize; 3]; 7] =
    [[1, 8, 5], [3, 7, 33], [17, 40, 130], [5, 64, 1000], [31, 33, 2051], [2, 8, 9001], [2, 16, 70_003]];

/// With the name of what is special about them.
fn params() -> Vec<(&'static str, LossParams)> {
    let plain = LossParams::default();
    vec![
        ("plain", plain),
        ("scaled, in chunks", LossParams { logit_scale: 0.125, chunk_tokens: Some(2), ..plain }),
        ("smoothed", LossParams { label_smoothing: 0.1, ..plain }),
        ("z-loss", LossParams { z_loss: 0.01, ..plain }),
        ("capped", LossParams { soft_cap: Some(2.), ..plain }),
        (
            "all at once",
            LossParams {
                label_smoothing: 0.3,
                z_loss: 1e-3,
                soft_cap: Some(3.),
                logit_scale: 0.5,
                chunk_tokens: Some(3),
            },
        ),
    ]
}

fn inputs([tokens, width, vocabulary]: [usize; 3]) -> Vec<Tensor> {
    vec![random(1, (tokens, width), DType::F64), random(2, (vocabulary, width), DType::F64)]
}

/// Every third token is ignored, but not the first.
fn targets([tokens, _, vocabulary]: [usize; 3]) -> Vec<u32> {
    let target = |token: usize| if token % 3 == 1 { IGNORED } else { (token * 7919 % vocabulary) as u32 };
    (0..tokens).map(target).collect()
}

fn head(weight: &Tensor) -> Projection {
    Projection { weight: weight.clone(), bias: None }
}

#[test]
fn losses_of_tokens_match_the_definition() {
    for shape in SHAPES {
        let targets = targets(shape);
        for (name, params) in params() {
            check(&Case {
                op: "lm_head_loss",
                name: format!("{shape:?}, {name}"),
                gates: GATES,
                inputs: inputs(shape),
                run: &|inputs| {
                    Ok(vec![lm_head_loss(&inputs[0], &head(&inputs[1]), &targets, &params)?.losses])
                },
                gradients: Gradients::None,
                definition: &|inputs| {
                    Ok(vec![reference::losses(&inputs[0], &inputs[1], None, &targets, &params)?])
                },
            });
        }
    }
}

#[test]
fn mean_and_gradients_match_the_definition() {
    for shape in SHAPES {
        let targets = targets(shape);
        let count = targets.iter().filter(|target| **target != IGNORED).count() as f64;
        for (name, params) in params() {
            check(&Case {
                op: "cross_entropy",
                name: format!("{shape:?}, {name}"),
                gates: GATES,
                inputs: inputs(shape),
                run: &|inputs| Ok(vec![cross_entropy(&inputs[0], &head(&inputs[1]), &targets, &params)?]),
                gradients: Gradients::Recorded,
                definition: &|inputs| {
                    let losses = reference::losses(&inputs[0], &inputs[1], None, &targets, &params)?;
                    Ok(vec![(losses.sum_all()? / count)?])
                },
            });
        }
    }
}

#[test]
fn a_bias_is_part_of_the_logits() {
    let shape = [5, 24, 77];
    let (targets, bias) = (targets(shape), random(3, 77, DType::F64));
    for (name, params) in params() {
        check(&Case {
            op: "cross_entropy",
            name: format!("{shape:?}, bias, {name}"),
            gates: GATES,
            inputs: inputs(shape),
            run: &|inputs| {
                let bias = Some(bias.to_dtype(inputs[0].dtype())?.to_device(inputs[0].device())?);
                let head = Projection { weight: inputs[1].clone(), bias };
                Ok(vec![cross_entropy(&inputs[0], &head, &targets, &params)?])
            },
            gradients: Gradients::Recorded,
            definition: &|inputs| {
                let losses = reference::losses(&inputs[0], &inputs[1], Some(&bias), &targets, &params)?;
                Ok(vec![(losses.sum_all()? / 3.)?]) // of 5, two are ignored
            },
        });
    }
}
