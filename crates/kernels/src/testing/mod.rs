//! What the tests of several ops share.
#![allow(clippy::unwrap_used)]

pub(crate) mod suite;

use std::fmt::Debug;

use candle_core::{DType, Device, Result, Shape, Tensor};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Uniform numbers in `-1..1`, rounded to `dtype`.
pub(crate) fn random(seed: u64, shape: impl Into<Shape>, dtype: DType) -> Tensor {
    let shape = shape.into();
    let mut generator = StdRng::seed_from_u64(seed);
    let values: Vec<f32> = (0..shape.elem_count()).map(|_| generator.random_range(-1f32..1.)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// All elements, in f64.
pub(crate) fn wide(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// All elements' bits.
pub(crate) fn bits(tensor: &Tensor) -> Vec<u32> {
    let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

/// Fails at the first element that is off by more than `tolerance · max(1, |expected|)`.
#[track_caller]
pub(crate) fn assert_close(found: &Tensor, expected: &[f64], tolerance: f64, context: &str) {
    let found = wide(found);
    assert_eq!(found.len(), expected.len(), "{context}: number of elements");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let allowed = tolerance * expected.abs().max(1.);
        let close = (found - expected).abs() <= allowed; // false for a NaN
        assert!(close, "{context}: element {index} is {found}, expected {expected} ± {allowed}");
    }
}

/// The message of an error, without the backtrace that candle adds where `RUST_BACKTRACE` asks for it.
#[track_caller]
pub(crate) fn message<T: Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string().lines().next().unwrap_or_default().to_string()
}
