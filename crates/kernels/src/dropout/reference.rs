//! The definition, one element at a time.

use candle_core::{Device, Result, Tensor};

use super::Dropout;

/// The random word of element `index` of a seed.
pub(super) fn word(index: u64, seed: u64) -> u32 {
    words(index / 4, seed)[(index % 4) as usize]
}

/// Philox-4x32-7 of the counter `[low, high, 0, 0]` and the key `[low, high]`.
pub(super) fn words(counter: u64, seed: u64) -> [u32; 4] {
    let product = |a: u32, b: u32| (((u64::from(a) * u64::from(b)) >> 32) as u32, a.wrapping_mul(b));
    let mut state = [counter as u32, (counter >> 32) as u32, 0, 0];
    for round in 0..7u32 {
        let key = [
            (seed as u32).wrapping_add(round.wrapping_mul(0x9e37_79b9)),
            ((seed >> 32) as u32).wrapping_add(round.wrapping_mul(0xbb67_ae85)),
        ];
        let (high_of_first, low_of_first) = product(state[0], 0xd251_1f53);
        let (high_of_second, low_of_second) = product(state[2], 0xcd9e_8d57);
        state = [
            high_of_second ^ state[1] ^ key[0],
            low_of_second,
            high_of_first ^ state[3] ^ key[1],
            low_of_first,
        ];
    }
    state
}

/// What `x` is multiplied by, in f64.
pub(super) fn factors(count: usize, dropout: &Dropout) -> Result<Tensor> {
    let probability = f64::from(dropout.probability);
    let factors = (0..count as u64).map(|index| {
        let share = f64::from(word(dropout.first.wrapping_add(index), dropout.seed)) / 2f64.powi(32);
        if share < probability { 0. } else { 1. / (1. - probability) }
    });
    Tensor::from_vec(factors.collect::<Vec<f64>>(), count, &Device::Cpu)
}
