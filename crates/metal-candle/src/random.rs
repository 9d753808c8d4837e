//! Random numbers that are the same on every machine and with every version of the libraries underneath.

use rand_pcg::{Pcg64Mcg, rand_core::RngCore};

/// A generator that every one of the seeds changes: PCG XSL RR 128/64 (MCG), its state drawn from [`split_mix`].
pub(crate) fn seeded(seeds: &[u64]) -> Pcg64Mcg {
    let mut state = 0;
    for seed in seeds {
        state ^= seed;
        state = split_mix(&mut state);
    }
    let high = u128::from(split_mix(&mut state)) << 64;
    Pcg64Mcg::new(high | u128::from(split_mix(&mut state)))
}

/// Shuffles with Fisher and Yates' method: from the last item on, each changes places with one at or before it. Which
/// one is the upper half of the 128-bit product of a draw and the number of choices; its bias is below 2^-32.
pub(crate) fn shuffle<T>(items: &mut [T], random: &mut Pcg64Mcg) {
    for last in (1..items.len()).rev() {
        let choices = last as u128 + 1;
        let chosen = (u128::from(random.next_u64()) * choices) >> 64;
        items.swap(last, chosen as usize);
    }
}

/// SplitMix64 (<https://prng.di.unimi.it/splitmix64.c>): turns neighbouring seeds into unrelated states.
pub(crate) fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_orders_are_equally_likely() {
        let mut counts = std::collections::BTreeMap::new();
        for seed in 0..6000 {
            let mut items = [0, 1, 2];
            shuffle(&mut items, &mut seeded(&[seed, 3]));
            *counts.entry(items).or_insert(0u32) += 1;
        }
        assert_eq!(counts.len(), 6);
        // Five standard deviations of a binomial count.
        assert!(counts.values().all(|count| count.abs_diff(1000) < 5 * 29), "{counts:?}");
    }

    #[test]
    fn each_seed_matters_and_so_does_its_place() {
        let first = |seeds: &[u64]| seeded(seeds).next_u64();
        let draws =
            [first(&[0, 0]), first(&[0, 1]), first(&[1, 0]), first(&[1, 1]), first(&[0]), first(&[1])];
        let distinct: std::collections::BTreeSet<u64> = draws.into_iter().collect();
        assert_eq!(distinct.len(), draws.len());
        assert_eq!(first(&[7, 8]), first(&[7, 8]));
    }
}
