//! On every device, against the definition.

use metal_candle_testkit::tolerance::Gate;

use super::*;
use crate::testing::{
    message, random,
    suite::{Case, Gradients, check},
    wide,
};

#[test]
fn sums_match_the_definition() {
    for shape in [&[1][..], &[7], &[8], &[3, 5, 9], &[2059]] {
        for (start, alike) in [(0, false), (1, false), (0, true), (1, true)] {
            // A part of a tensor that may not start at a multiple of 16 bytes.
            let whole = |dtype| random(1, [&[shape[0] + start], &shape[1..]].concat(), dtype);
            check(&Case {
                op: "accumulate",
                name: format!("{shape:?} from {start}{}", if alike { ", in its own type" } else { "" }),
                gates: if alike { [Gate::AccumulateAlike; 2] } else { [Gate::Accumulate; 2] },
                inputs: vec![random(2, shape, DType::F64), whole(DType::F64)],
                run: &|inputs| {
                    let sum = if alike { inputs[1].dtype() } else { DType::F32 };
                    let into = inputs[0].to_dtype(sum)?.copy()?;
                    accumulate(&into, &inputs[1].narrow(0, start, shape[0])?)?;
                    Ok(vec![into])
                },
                gradients: Gradients::None,
                definition: &|inputs| Ok(vec![(&inputs[0] + inputs[1].narrow(0, start, shape[0])?)?]),
            });
        }
    }
}

#[test]
fn a_part_of_a_sum_is_changed_where_it_is() {
    let (into, x) = (random(1, (5, 7), DType::F32), random(2, (2, 7), DType::BF16));
    let before = wide(&into);
    accumulate(&into.narrow(0, 1, 2).unwrap(), &x).unwrap();
    let x = wide(&x);
    for (index, (after, before)) in wide(&into).into_iter().zip(before).enumerate() {
        let addend = if (7..21).contains(&index) { x[index - 7] } else { 0. };
        assert_eq!(after, f64::from((before + addend) as f32), "{index}");
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let sum = random(1, (2, 3), DType::F32);
    let with = |into: &Tensor, x: &Tensor| message(accumulate(into, x));
    assert!(with(&sum, &random(1, (3, 2), DType::F32)).contains("the same shape"));
    assert!(with(&random(1, (2, 3), DType::BF16), &sum).contains("the same shape"));
    assert!(with(&sum.t().unwrap(), &random(1, (3, 2), DType::F32)).contains("must be contiguous"));
    let variable = candle_core::Var::from_tensor(&sum).unwrap();
    assert!(with(variable.as_tensor(), &sum).contains("outside of any graph"));
    assert!(with(&sum, &sum.to_dtype(DType::U8).unwrap()).contains("expected f32, f16 or bf16"));
}
