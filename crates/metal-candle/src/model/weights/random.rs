//! Random weights: for measuring speed and memory of a shape without downloading a model.

use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use metal_candle_kernels::{
    memory::{Plain, huge_vec},
    pool,
};

use super::{Weights, WeightsError};

/// Elements that one task fills; each piece has its own random sequence, so threads do not matter.
const PIECE: usize = 1 << 16;
/// Every tensor starts on a cache line.
const ALIGNMENT_BYTES: usize = 64;
/// Small enough for activations to stay finite through many layers.
const SPREAD: f32 = 0.02;

impl Weights {
    /// Weights of these names and shapes, evenly spread around zero; those of norms (with one dimension and a name
    /// that ends in `norm.weight`) are one. The same `seed` gives the same weights.
    ///
    /// They lie in memory as loaded ones do: on the CPU all of them in one buffer on huge pages.
    pub fn random(
        tensors: &[(String, Vec<usize>)],
        dtype: DType,
        device: &Device,
        seed: u64,
    ) -> Result<Weights, WeightsError> {
        match dtype {
            DType::F32 => fill::<f32>(tensors, device, seed, |value| value),
            DType::BF16 => fill::<bf16>(tensors, device, seed, bf16::from_f32),
            DType::F16 => fill::<f16>(tensors, device, seed, f16::from_f32),
            other => Err(WeightsError::UnsupportedTarget(other)),
        }
    }
}

fn fill<T: Plain + WithDType>(
    tensors: &[(String, Vec<usize>)],
    device: &Device,
    seed: u64,
    round: fn(f32) -> T,
) -> Result<Weights, WeightsError> {
    let align = ALIGNMENT_BYTES / size_of::<T>();
    let elements = |shape: &[usize]| shape.iter().product::<usize>();
    let padded: usize = tensors.iter().map(|(_, shape)| elements(shape).next_multiple_of(align)).sum();
    let mut values = huge_vec::<T>(padded + align).map_err(WeightsError::OutOfMemory)?;
    let first = values.as_ptr().align_offset(ALIGNMENT_BYTES).min(align);
    // From the first used element on, so that the place of the buffer in memory does not matter.
    pool::for_each_part(&mut values[first..], PIECE, |piece, values| {
        let mut state = seed ^ (piece as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        for value in values {
            *value = round(SPREAD * next(&mut state));
        }
    });
    let mut start = first;
    let mut starts = Vec::with_capacity(tensors.len());
    for (name, shape) in tensors {
        if shape.len() == 1 && name.ends_with("norm.weight") {
            values[start..start + shape[0]].fill(round(1.0));
        }
        starts.push(start);
        start += elements(shape).next_multiple_of(align);
    }
    if !device.is_cpu() {
        // From slices: candle would move the whole buffer with every view of it.
        let made = tensors.iter().zip(starts).map(|((name, shape), start)| {
            let values = &values[start..start + elements(shape)];
            Ok((name.clone(), Tensor::from_slice(values, shape.as_slice(), device)?))
        });
        return made.collect();
    }
    let buffer = Tensor::from_vec(values, padded + align, &Device::Cpu)?;
    let made = tensors.iter().zip(starts).map(|((name, shape), start)| {
        Ok((name.clone(), buffer.narrow(0, start, elements(shape))?.reshape(shape.as_slice())?))
    });
    made.collect()
}

/// An evenly spread number from -1 to 1 (xorshift64*: fast, and good enough for weights nobody reads).
fn next(state: &mut u64) -> f32 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    let bits = state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40; // 24 bits
    bits as f32 / 8_388_608.0 - 1.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn weights_are_small_different_and_repeatable() {
        let tensors = [("a.weight".to_owned(), vec![300, 301]), ("norm.weight".to_owned(), vec![7])];
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let make = |seed| {
                let mut weights = Weights::random(&tensors, dtype, &Device::Cpu, seed).unwrap();
                let matrix = weights.take("a.weight").unwrap();
                assert_eq!((matrix.dims(), matrix.dtype()), ([300, 301].as_slice(), dtype));
                let norm = weights.take("norm.weight").unwrap().to_dtype(DType::F32).unwrap();
                assert_eq!(norm.to_vec1::<f32>().unwrap(), [1.0; 7]);
                let flat = matrix.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
                flat.to_vec1::<f32>().unwrap()
            };
            let values = make(1);
            assert!(values.iter().all(|value| value.abs() <= SPREAD * 1.01));
            let mean: f32 = values.iter().sum::<f32>() / values.len() as f32;
            let variance: f32 = values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32;
            assert!(mean.abs() < 5e-4, "{mean}");
            // An even spread over ±s has the variance s²/3.
            assert!((variance / (SPREAD * SPREAD / 3.0) - 1.0).abs() < 0.03, "{variance}");
            assert!(values == make(1));
            assert!(values != make(2));
        }
    }

    #[test]
    fn only_float_dtypes_are_made() {
        let error = Weights::random(&[], DType::U8, &Device::Cpu, 0).unwrap_err();
        assert!(matches!(error, WeightsError::UnsupportedTarget(DType::U8)), "{error}");
    }
}
