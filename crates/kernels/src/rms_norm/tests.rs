#![allow(clippy::unwrap_used)]

use candle_core::DType;

use super::*;
use crate::{
    simd::{available, with_level},
    testing::{assert_close, bits, message, random, wide},
};

const WIDTHS: [usize; 9] = [1, 3, 8, 17, 64, 65, 100, 128, 896];

fn norm(width: usize, dtype: DType, weight_offset: f32) -> RmsNorm {
    RmsNorm { weight: random(7, width, dtype), epsilon: 1e-6, weight_offset }
}

/// The definition in f64.
fn expected_norm(x: &[f64], norm: &RmsNorm) -> Vec<f64> {
    let weight = wide(&norm.weight);
    let rows = x.chunks(weight.len()).flat_map(|row| {
        let mean = row.iter().map(|value| value * value).sum::<f64>() / row.len() as f64;
        let factor = 1. / (mean + f64::from(norm.epsilon)).sqrt();
        row.iter()
            .zip(&weight)
            .map(move |(value, weight)| value * factor * (weight + f64::from(norm.weight_offset)))
    });
    rows.collect()
}

fn expected_sum(residual: &[f64], delta: &[f64], scale: f32) -> Vec<f64> {
    residual.iter().zip(delta).map(|(residual, delta)| residual + f64::from(scale) * delta).collect()
}

/// All three ops for one shape.
fn check(shape: &[usize], dtype: DType, weight_offset: f32, context: &str) {
    let norm = norm(shape[shape.len() - 1], dtype, weight_offset);
    let (residual, delta, scale) = (random(1, shape, DType::F32), random(2, shape, DType::F32), 0.7);
    let (wide_residual, wide_delta) = (wide(&residual), wide(&delta));

    let expected = expected_norm(&wide_delta, &norm);
    assert_close(&rms_norm(&delta, &norm).unwrap(), &expected, 2e-6, context);

    let added = expected_sum(&wide_residual, &expected, scale);
    assert_close(&rms_norm_add(&residual, &delta, scale, &norm).unwrap(), &added, 2e-6, context);

    let sum = expected_sum(&wide_residual, &wide_delta, scale);
    let normed = expected_norm(&sum, &norm);
    let (found_sum, found_normed) = add_rms_norm(&residual, &delta, scale, &norm).unwrap();
    assert_eq!(found_sum.dims(), shape);
    assert_close(&found_sum, &sum, 1e-6, context);
    assert_close(&found_normed, &normed, 5e-6, context);
}

#[test]
fn every_level_matches_the_definition() {
    for level in available() {
        with_level(level, || {
            for width in WIDTHS {
                for dtype in [DType::F32, DType::BF16, DType::F16] {
                    check(&[3, width], dtype, 0., &format!("{level} {width} {dtype:?}"));
                    check(&[3, width], dtype, 1., &format!("{level} {width} {dtype:?}, offset 1"));
                }
            }
            check(&[160, 896], DType::BF16, 0., &format!("{level}, many rows"));
        });
    }
}

#[test]
fn any_rank_is_normed_over_its_last_dimension() {
    check(&[64], DType::F32, 0., "rank 1");
    check(&[2, 3, 5, 20], DType::F32, 0., "rank 4");
    check(&[2, 0, 20], DType::F32, 0., "no rows");
}

#[test]
fn a_row_does_not_depend_on_the_rows_beside_it() {
    let (x, norm) = (random(3, (200, 896), DType::F32), norm(896, DType::BF16, 0.));
    let whole = bits(&rms_norm(&x, &norm).unwrap());
    for row in [0, 1, 99, 199] {
        let alone = rms_norm(&x.narrow(0, row, 1).unwrap(), &norm).unwrap();
        assert_eq!(bits(&alone), whole[row * 896..(row + 1) * 896]);
    }
}

#[test]
fn wrong_arguments_are_named() {
    let norm = norm(8, DType::F32, 0.);
    let x = random(1, (3, 8), DType::F32);

    let narrow = random(1, (3, 7), DType::F32);
    assert_eq!(message(rms_norm(&narrow, &norm)), "rms_norm: `weight` is [8], expected [7] for `x` [3, 7]");
    let delta = random(1, (2, 8), DType::F32);
    let expected = "rms_norm_add: `delta` is [2, 8], expected [3, 8] like `residual`";
    assert_eq!(message(rms_norm_add(&x, &delta, 1., &norm)), expected);
    assert!(add_rms_norm(&x, &delta, 1., &norm).is_err());

    let half = x.to_dtype(DType::F16).unwrap();
    let expected = "rms_norm_add: `delta` is F16, expected F32 like `residual`";
    assert_eq!(message(rms_norm_add(&x, &half, 1., &norm)), expected);
    let double = RmsNorm { weight: norm.weight.to_dtype(DType::F64).unwrap(), ..norm };
    assert_eq!(message(rms_norm(&x, &double)), "rms_norm: `weight` has dtype F64; use f32, bf16 or f16");
}
