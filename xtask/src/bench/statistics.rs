//! Medians, intervals and tests over processes. A process is one start of a bench program; batches within one share
//! their memory layout and their moment, so they are no independent evidence and are first reduced to one figure.

use super::random::Random;

/// Resamples of a bootstrap.
const RESAMPLES: usize = 1999;

/// An estimate and its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Interval {
    pub(crate) estimate: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// The `share`-quantile, interpolated; NaN of nothing.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = share * last as f64;
    let (below, above) = (at.floor() as usize, at.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * at.fract()
}

pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The standard deviation relative to the median, from the median absolute deviation: one process that
/// met somebody else's build does not make a row look noisy.
pub(crate) fn spread(values: &[f64]) -> f64 {
    let center = median(values);
    let deviations: Vec<f64> = values.iter().map(|value| (value - center).abs()).collect();
    1.4826 * median(&deviations) / center
}

/// The percentile bootstrap of any statistic over independent values.
pub(crate) fn bootstrap(values: &[f64], seed: &str, statistic: impl Fn(&[f64]) -> f64) -> Interval {
    let estimate = statistic(values);
    let mut random = Random::named(seed);
    let mut drawn = vec![0.0; values.len()];
    let resampled: Vec<f64> = (0..if values.is_empty() { 0 } else { RESAMPLES })
        .map(|_| {
            drawn.fill_with(|| values[random.below(values.len())]);
            statistic(&drawn)
        })
        .collect();
    Interval { estimate, low: quantile(&resampled, 0.025), high: quantile(&resampled, 0.975) }
}

/// The median and its interval.
pub(crate) fn median_interval(values: &[f64], seed: &str) -> Interval {
    bootstrap(values, seed, median)
}

/// The ratio of two medians of independent processes, `new` over `old`.
pub(crate) fn unpaired_ratio(new: &[f64], old: &[f64], seed: &str) -> Interval {
    let mut random = Random::named(seed);
    let mut draw = |values: &[f64]| -> f64 {
        let drawn: Vec<f64> = values.iter().map(|_| values[random.below(values.len())]).collect();
        median(&drawn)
    };
    let resampled: Vec<f64> = (0..RESAMPLES).map(|_| draw(new) / draw(old)).collect();
    Interval {
        estimate: median(new) / median(old),
        low: quantile(&resampled, 0.025),
        high: quantile(&resampled, 0.975),
    }
}

/// The ratio of pairs measured one right after the other, `new` over `old`.
pub(crate) fn paired_ratio(pairs: &[(f64, f64)], seed: &str) -> Interval {
    let logs: Vec<f64> = pairs.iter().map(|(new, old)| (new / old).ln()).collect();
    let interval = bootstrap(&logs, seed, hodges_lehmann);
    Interval { estimate: interval.estimate.exp(), low: interval.low.exp(), high: interval.high.exp() }
}

/// The Hodges-Lehmann estimate: the median of the means of all pairs of values. As sure as the mean where noise is
/// normal, as indifferent to a few wild values as a median.
pub(crate) fn hodges_lehmann(values: &[f64]) -> f64 {
    let mut means = Vec::with_capacity(values.len() * (values.len() + 1) / 2);
    for (index, first) in values.iter().enumerate() {
        means.extend(values[index..].iter().map(|second| (first + second) / 2.0));
    }
    let Some(half) = means.len().checked_sub(1) else { return f64::NAN };
    let (_, middle, above) = means.select_nth_unstable_by(half / 2, f64::total_cmp);
    let middle = *middle;
    if half % 2 == 0 { middle } else { (middle + above.iter().copied().fold(f64::INFINITY, f64::min)) / 2.0 }
}

/// The probability of differences at least this positive if their sign were decided by a coin (Wilcoxon's signed
/// ranks, exact). The order within each pair *is* decided by a coin, so this holds whatever the noise is like.
pub(crate) fn signed_rank_p(differences: &[f64]) -> f64 {
    let mut ordered: Vec<f64> = differences.iter().copied().filter(|difference| *difference != 0.0).collect();
    ordered.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    let positive: usize = ordered
        .iter()
        .enumerate()
        .filter(|(_, difference)| **difference > 0.0)
        .map(|(rank, _)| rank + 1)
        .sum();
    // The share of all sign patterns with each sum of positive ranks.
    let largest = ordered.len() * (ordered.len() + 1) / 2;
    let mut share = vec![0.0; largest + 1];
    share[0] = 1.0;
    for rank in 1..=ordered.len() {
        for sum in (0..=rank * (rank + 1) / 2).rev() {
            let without = share[sum];
            let with = if sum >= rank { share[sum - rank] } else { 0.0 };
            share[sum] = (without + with) / 2.0;
        }
    }
    share[positive..].iter().sum()
}

/// The probability that independent `new` values would rank this high above `old` ones if nothing had changed (the
/// rank-sum test, exact).
pub(crate) fn rank_sum_p(new: &[f64], old: &[f64]) -> f64 {
    let mut all: Vec<(f64, bool)> =
        new.iter().map(|value| (*value, true)).chain(old.iter().map(|value| (*value, false))).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let sum: usize =
        all.iter().enumerate().filter(|(_, (_, is_new))| *is_new).map(|(rank, _)| rank + 1).sum();
    // ways[count][sum]: choices of so many ranks with this sum.
    let largest = all.len() * (all.len() + 1) / 2;
    let mut ways = vec![vec![0.0; largest + 1]; new.len() + 1];
    ways[0][0] = 1.0;
    for rank in 1..=all.len() {
        for count in (1..=new.len().min(rank)).rev() {
            for total in (rank..=largest).rev() {
                ways[count][total] += ways[count - 1][total - rank];
            }
        }
    }
    let possible = &ways[new.len()];
    possible[sum..].iter().sum::<f64>() / possible.iter().sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_interpolated() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(quantile(&[0.0, 10.0], 0.25), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn spread_is_the_standard_deviation_and_ignores_one_wild_value() {
        let mut random = Random::new(1);
        let mut values: Vec<f64> = (0..10_001).map(|_| 100.0 + 3.0 * normal(&mut random)).collect();
        assert!((spread(&values) - 0.03).abs() < 0.001, "{}", spread(&values));
        values[10_000] = 1e6;
        assert!((spread(&values) - 0.03).abs() < 0.001);
    }

    #[test]
    fn hodges_lehmann_of_small_sets() {
        // Means of pairs: 1, 2, 3.5, 3, 4.5, 6.
        assert_eq!(hodges_lehmann(&[1.0, 3.0, 6.0]), 3.25);
        assert_eq!(hodges_lehmann(&[5.0]), 5.0);
    }

    #[test]
    fn signed_ranks_agree_with_counting_all_signs() {
        for values in [vec![1.0, 2.0, 3.0, 4.0, 5.0], vec![-1.0, 2.0, -3.0, 4.0], vec![-2.0, -1.0], vec![0.5]]
        {
            let sum = |signs: u32| -> usize {
                (0..values.len()).filter(|index| signs >> index & 1 == 1).map(|index| index + 1).sum()
            };
            let observed =
                (0..values.len()).filter(|index| values[*index] > 0.0).map(|index| index + 1).sum();
            let patterns = 1u32 << values.len();
            let extreme = (0..patterns).filter(|signs| sum(*signs) >= observed).count();
            assert!((signed_rank_p(&values) - extreme as f64 / f64::from(patterns)).abs() < 1e-12);
        }
    }

    #[test]
    fn rank_sums_agree_with_published_values() {
        // All of 3 above all of 2: one of (5 choose 3) choices.
        assert!((rank_sum_p(&[4.0, 5.0, 6.0], &[1.0, 2.0]) - 0.1).abs() < 1e-12);
        assert!((rank_sum_p(&[1.0, 2.0, 3.0], &[4.0, 5.0]) - 1.0).abs() < 1e-12);
    }

    /// 95 % intervals hold the truth about 95 times in 100: of a median of 20 processes, and of a paired ratio.
    #[test]
    fn intervals_hold_what_they_promise() {
        let mut random = Random::new(7);
        let mut normal = || normal(&mut random);
        let (mut medians, mut ratios) = (0, 0);
        for trial in 0..200 {
            let values: Vec<f64> = (0..20).map(|_| 100.0 + 2.0 * normal()).collect();
            let interval = median_interval(&values, &trial.to_string());
            medians += usize::from(interval.low <= 100.0 && 100.0 <= interval.high);
            let pairs: Vec<(f64, f64)> = (0..20)
                .map(|_| {
                    // Both of a pair share what the machine does at that moment.
                    let moment = (0.2 * normal()).exp();
                    (1.05 * moment * (0.02 * normal()).exp(), moment * (0.02 * normal()).exp())
                })
                .collect();
            let interval = paired_ratio(&pairs, &trial.to_string());
            ratios += usize::from(interval.low <= 1.05 && 1.05 <= interval.high);
        }
        assert!((180..=199).contains(&medians), "{medians} of 200");
        assert!((180..=199).contains(&ratios), "{ratios} of 200");
    }

    /// Normal numbers, by Box and Muller.
    fn normal(random: &mut Random) -> f64 {
        let mut uniform = || ((random.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        (-2.0 * uniform().ln()).sqrt() * (2.0 * std::f64::consts::PI * uniform()).cos()
    }
}
