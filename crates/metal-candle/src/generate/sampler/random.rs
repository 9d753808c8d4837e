//! The random numbers of one sequence.

use rand_pcg::{Pcg64Mcg, rand_core::RngCore};
use serde::{Deserialize, Serialize};

use crate::random::split_mix;

/// Where a sequence's random numbers stand. Small, exact in JSON, and enough to go on elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomState {
    /// The seed that the numbers started from.
    pub seed: u64,
    /// How many have been drawn.
    pub draws: u64,
}

/// A generator that only its own sequence draws from, so that batch mates change nothing.
#[derive(Clone, Debug)]
pub(crate) struct SequenceRandom {
    generator: Pcg64Mcg,
    state: RandomState,
}

impl SequenceRandom {
    pub(crate) fn new(seed: u64) -> Self {
        let mut mixer = seed;
        let high = u128::from(split_mix(&mut mixer)) << 64;
        let generator = Pcg64Mcg::new(high | u128::from(split_mix(&mut mixer)));
        Self { generator, state: RandomState { seed, draws: 0 } }
    }

    pub(super) fn restore(state: RandomState) -> Self {
        let mut random = Self::new(state.seed);
        random.generator.advance(u128::from(state.draws));
        random.state = state;
        random
    }

    pub(super) fn state(&self) -> RandomState {
        self.state
    }

    /// A number in `0..1`, a multiple of 2^-53.
    pub(crate) fn uniform(&mut self) -> f64 {
        self.state.draws += 1;
        (self.generator.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restored_state_goes_on_where_it_stood() {
        let mut original = SequenceRandom::new(7);
        for draws in 0..100 {
            let mut restored = SequenceRandom::restore(RandomState { seed: 7, draws });
            assert_eq!(restored.state(), original.state());
            assert_eq!(restored.uniform(), original.uniform());
        }
    }

    #[test]
    fn neighbouring_seeds_are_unrelated() {
        let firsts: Vec<f64> = (0..1000).map(|seed| SequenceRandom::new(seed).uniform()).collect();
        let mean = firsts.iter().sum::<f64>() / 1000.0;
        let pairs = firsts.windows(2).map(|pair| (pair[0] - 0.5) * (pair[1] - 0.5)).sum::<f64>() / 999.0;
        // Five standard deviations of each statistic.
        assert!((mean - 0.5).abs() < 5.0 * 0.2887 / 1000f64.sqrt(), "mean {mean}");
        assert!(pairs.abs() < 5.0 / 12.0 / 999f64.sqrt(), "correlation {pairs}");
    }
}
