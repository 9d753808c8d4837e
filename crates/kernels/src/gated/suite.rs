//! On every device, against the definition.

use metal_candle_testkit::tolerance::Gate;

use super::*;
use crate::testing::{
    random,
    suite::{Case, Gradients, check},
};

#[test]
fn gated_activations_match_the_definition() {
    for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
        for shape in [&[1][..], &[3, 7], &[5, 64], &[2, 3, 1000]] {
            // Far out in both tails as well.
            let gate = (random(1, shape, DType::F64) * 8.).unwrap();
            check(&Case {
                op: "gated",
                name: format!("{activation:?} {shape:?}"),
                gates: [Gate::Gated, Gate::GatedBackward],
                inputs: vec![gate, random(2, shape, DType::F64)],
                run: &|inputs| Ok(vec![gated(&inputs[0], &inputs[1], activation)?]),
                gradients: Gradients::Recorded,
                definition: &|inputs| Ok(vec![reference::gated(&inputs[0], &inputs[1], activation)?]),
            });
        }
    }
}

#[test]
fn gradients_in_place_are_those_beside() {
    for shape in [&[3, 7][..], &[2, 3, 1000]] {
        check(&Case {
            op: "gated",
            name: format!("in place {shape:?}"),
            gates: [Gate::Gated, Gate::GatedBackward],
            inputs: vec![random(1, shape, DType::F64), random(2, shape, DType::F64)],
            run: &|inputs| Ok(vec![gated(&inputs[0], &inputs[1], Activation::Silu)?]),
            gradients: Gradients::Explicit(&|inputs, dy| {
                let (gate, up) = (inputs[0].copy()?, inputs[1].copy()?);
                let (d_gate, d_up) = gated_backward_in_place(gate, up, &dy[0], Activation::Silu)?;
                Ok(vec![d_gate, d_up])
            }),
            definition: &|inputs| Ok(vec![reference::gated(&inputs[0], &inputs[1], Activation::Silu)?]),
        });
    }
}

#[test]
fn wrong_arguments_are_named() {
    let (gate, up) = (random(1, (2, 3), DType::F32), random(1, (2, 4), DType::F32));
    let message = crate::testing::message(gated(&gate, &up, Activation::Silu));
    assert_eq!(message, "gated: `up` is ([2, 4], F32), expected ([2, 3], F32) like `gate`");
}
