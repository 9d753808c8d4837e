//! Random numbers from a seed: the same on every machine and in every run.

use std::{f32::consts::TAU, ops::Range};

use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// A source of random test data.
#[derive(Debug, Clone)]
pub struct Random(Pcg64Mcg);

impl Random {
    /// The same seed gives the same sequence.
    pub fn new(seed: u64) -> Self {
        Self(Pcg64Mcg::seed_from_u64(seed))
    }

    /// Evenly distributed values of the range.
    pub fn uniform(&mut self, count: usize, range: Range<f32>) -> Vec<f32> {
        (0..count).map(|_| self.0.random_range(range.clone())).collect()
    }

    /// Normally distributed values.
    pub fn normal(&mut self, count: usize, mean: f32, standard_deviation: f32) -> Vec<f32> {
        (0..count).map(|_| mean + standard_deviation * self.one_normal()).collect()
    }

    /// Token ids below `vocabulary`.
    pub fn ids(&mut self, count: usize, vocabulary: u32) -> Vec<u32> {
        (0..count).map(|_| self.0.random_range(0..vocabulary)).collect()
    }

    /// An index below `limit`, for a random choice or length.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0.random_range(0..limit)
    }

    /// Box-Muller; the logarithm's argument lies in (0, 1].
    fn one_normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.0.random::<f32>()).ln()).sqrt();
        radius * (TAU * self.0.random::<f32>()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_sequence() {
        let draw = |seed| Random::new(seed).normal(8, 0.0, 1.0);
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }

    #[test]
    fn normal_values_have_the_mean_and_the_deviation() {
        let values = Random::new(1).normal(20_000, 2.0, 0.5);
        let count = values.len() as f32;
        let mean = values.iter().sum::<f32>() / count;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / count;
        // Four standard errors: 0.5 / sqrt(20,000) and 0.5 / sqrt(40,000).
        assert!((mean - 2.0).abs() < 0.0142, "{mean}");
        assert!((variance.sqrt() - 0.5).abs() < 0.01, "{variance}");
    }

    #[test]
    fn ranges_hold() {
        let mut random = Random::new(2);
        assert!(random.uniform(1000, -1.0..0.5).iter().all(|value| (-1.0..0.5).contains(value)));
        let ids = random.ids(1000, 7);
        assert!((0..7).all(|id| ids.contains(&id)) && ids.iter().all(|&id| id < 7));
        assert!((0..100).all(|_| random.below(3) < 3));
    }
}
