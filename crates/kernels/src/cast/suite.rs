//! On every device, against the definition.

use candle_core::Device;
use metal_candle_testkit::tolerance::Gate;

use super::*;
use crate::testing::{
    message, random,
    suite::{Case, Gradients, check as check_case, each_rig},
    wide,
};

const SHAPES: [&[usize]; 6] = [&[1], &[7], &[8], &[3, 5, 9], &[64, 32], &[40_003]];

#[test]
fn casts_match_the_definition() {
    for target in [DType::F32, DType::F16, DType::BF16] {
        for shape in SHAPES {
            // Rounded to the narrowest type on both sides, so that a case has one precision.
            let x = random(1, shape, DType::BF16).to_dtype(DType::F64).unwrap();
            for scale in [1., -2.5] {
                check_case(&Case {
                    op: "cast",
                    name: format!("{shape:?} to {target:?}, scale {scale}"),
                    gates: [Gate::Cast, Gate::Cast],
                    inputs: vec![x.clone()],
                    run: &|inputs| {
                        cast(&cast(&inputs[0], target, scale)?, inputs[0].dtype(), 1.).map(|y| vec![y])
                    },
                    gradients: Gradients::Recorded,
                    definition: &|inputs| Ok(vec![(&inputs[0] * f64::from(scale))?]),
                });
            }
        }
    }
}

#[test]
fn casts_round_to_the_nearest_and_scaling_in_place_does_the_same() {
    for (from, to) in [DType::F32, DType::F16, DType::BF16]
        .into_iter()
        .flat_map(|from| [DType::F32, DType::F16, DType::BF16].map(|to| (from, to)))
    {
        each_rig("cast", "forward", from, |device| {
            let x = random(1, 1003, from).to_device(device).unwrap();
            // A power of two is exact: what remains is the rounding of the target.
            let found = cast(&x, to, 4.).unwrap().to_device(&Device::Cpu).unwrap();
            let expected = (x.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap() * 4.).unwrap();
            assert_eq!(wide(&found), wide(&expected.to_dtype(to).unwrap()), "{from:?} to {to:?}");
            if from == to {
                scale_in_place(&x, 4.).unwrap();
                assert_eq!(wide(&x.to_device(&Device::Cpu).unwrap()), wide(&found), "{from:?} in place");
            }
        });
    }
}

#[test]
fn a_part_of_a_tensor_is_cast_and_scaled_where_it_is() {
    each_rig("cast", "forward", DType::F32, |device| {
        let x = random(1, (5, 7), DType::F32).to_device(device).unwrap();
        let before = wide(&x.to_device(&Device::Cpu).unwrap());
        let part = x.narrow(0, 1, 2).unwrap();
        let found = cast(&part, DType::BF16, 1.).unwrap().to_device(&Device::Cpu).unwrap();
        let expected = part.to_device(&Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap();
        assert_eq!(wide(&found), wide(&expected));
        scale_in_place(&part, 2.).unwrap();
        for (index, (after, before)) in
            wide(&x.to_device(&Device::Cpu).unwrap()).into_iter().zip(&before).enumerate()
        {
            assert_eq!(after, before * if (7..21).contains(&index) { 2. } else { 1. }, "{index}");
        }
    });
}

#[test]
fn what_is_not_finite_stays_so() {
    for to in [DType::F16, DType::BF16] {
        each_rig("cast", "forward", to, |device| {
            let values = vec![f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e30, -0.];
            let x = Tensor::from_vec(values, 5, device).unwrap();
            let found = wide(&cast(&x, to, 1.).unwrap().to_device(&Device::Cpu).unwrap());
            assert_eq!((found[0], found[1]), (f64::INFINITY, f64::NEG_INFINITY));
            assert!(found[2].is_nan() && found[4] == 0. && found[4].is_sign_negative());
            assert_eq!(found[3].is_infinite(), to == DType::F16);
        });
    }
}

#[test]
fn wrong_arguments_are_named() {
    let x = random(1, (2, 3), DType::F32);
    assert_eq!(message(cast(&x, DType::U8, 1.)), "cast: between f32, f16 and bf16, not U8");
    let turned = x.t().unwrap();
    assert!(message(scale_in_place(&turned, 2.)).starts_with("scale_in_place: `x` must be contiguous"));
    let variable = candle_core::Var::from_tensor(&x).unwrap();
    let recorded = (variable.as_tensor() * 2.).unwrap();
    assert!(message(scale_in_place(&recorded, 2.)).contains("recorded op"));
    scale_in_place(&variable, 2.).unwrap();
    assert_eq!(wide(&variable), wide(&(x * 2.).unwrap()));
}
