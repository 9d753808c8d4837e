//! Which sequences of a window share a batch.

use std::collections::BTreeSet;

use rand_pcg::Pcg64Mcg;

use super::{Batching, LoaderOptions};
use crate::random::shuffle;

/// The sequences of one stretch of rows, by their place in the window.
pub(super) type Bin = Vec<usize>;

/// Batches of bins. Every sequence is in exactly one bin; `random` decides the order of what length has sorted.
pub(super) fn plan(
    lengths: &[usize],
    options: &LoaderOptions,
    random: Option<&mut Pcg64Mcg>,
) -> Vec<Vec<Bin>> {
    let size = options.batch_size;
    let batches = |bins: &[Bin]| bins.chunks(size).map(<[Bin]>::to_vec).collect();
    match options.batching {
        // Already in the order of the epoch.
        Batching::Concatenated => batches(&(0..lengths.len()).map(|index| vec![index]).collect::<Vec<_>>()),
        Batching::Packed => {
            let mut bins = best_fit(lengths, options.max_seq_length);
            order(&mut bins, |bin| bin[0], random);
            batches(&bins)
        }
        Batching::Padded => {
            let mut buckets: Vec<Vec<Bin>> =
                batches(&longest_first(lengths).map(|index| vec![index]).collect::<Vec<_>>());
            for bucket in &mut buckets {
                bucket.sort_unstable();
            }
            order(&mut buckets, |bucket| bucket[0][0], random);
            buckets
        }
    }
}

/// Best fit: each sequence, from the longest on, into the bin that it leaves with the least room; into a new one if
/// it fits nowhere. Of each bin, the indices of its sequences; none may be longer than the capacity.
pub fn best_fit(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut bins: Vec<Bin> = Vec::new();
    let mut by_room: BTreeSet<(usize, usize)> = BTreeSet::new();
    for index in longest_first(lengths) {
        let length = lengths[index];
        let (room, bin) = match by_room.range((length, 0)..).next().copied() {
            Some(found) => {
                by_room.remove(&found);
                found
            }
            None => {
                bins.push(Bin::new());
                (capacity, bins.len() - 1)
            }
        };
        bins[bin].push(index);
        by_room.insert((room - length, bin));
    }
    for bin in &mut bins {
        bin.sort_unstable();
    }
    bins
}

/// The longest first, those of one length in their order.
fn longest_first(lengths: &[usize]) -> impl Iterator<Item = usize> {
    let mut indices: Vec<usize> = (0..lengths.len()).collect();
    indices.sort_by_key(|&index| std::cmp::Reverse(lengths[index]));
    indices.into_iter()
}

/// Undoes the order by length: at random, or by each group's first sequence.
fn order<T>(groups: &mut [T], first: impl Fn(&T) -> usize, random: Option<&mut Pcg64Mcg>) {
    groups.sort_by_key(first);
    if let Some(random) = random {
        shuffle(groups, random);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::random::seeded;

    fn options(batching: Batching, batch_size: usize) -> LoaderOptions {
        LoaderOptions { batching, batch_size, max_seq_length: 64, ..LoaderOptions::default() }
    }

    #[test]
    fn fills_gaps_with_what_fits_best() {
        let bins = best_fit(&[20, 40, 50, 14, 24, 10], 64);
        assert_eq!(bins, [vec![2, 3], vec![1, 4], vec![0, 5]]);
    }

    #[test]
    fn without_shuffling_the_first_examples_come_first() {
        let plan = plan(&[1, 2, 60, 61, 62, 63], &options(Batching::Padded, 2), None);
        assert_eq!(plan, [[[0], [1]], [[2], [3]], [[4], [5]]]);
    }

    proptest! {
        #[test]
        fn every_sequence_is_in_one_bin_that_holds_it(
            lengths in proptest::collection::vec(1usize..=64, 1..200),
            batch_size in 1usize..6,
            batching in prop_oneof![Just(Batching::Concatenated), Just(Batching::Packed), Just(Batching::Padded)],
            seed in proptest::option::of(0u64..5),
        ) {
            let mut random = seed.map(|seed| seeded(&[seed]));
            let batches = plan(&lengths, &options(batching, batch_size), random.as_mut());
            let mut found: Vec<usize> = batches.iter().flatten().flatten().copied().collect();
            found.sort_unstable();
            prop_assert_eq!(found, (0..lengths.len()).collect::<Vec<_>>());
            let rows = |bin: &Bin| bin.iter().map(|&index| lengths[index]).sum::<usize>();
            prop_assert!(batches.iter().flatten().all(|bin| !bin.is_empty() && rows(bin) <= 64));
            prop_assert!(batches.iter().all(|batch| (1..=batch_size).contains(&batch.len())));
            let partial = batches.iter().filter(|batch| batch.len() < batch_size).count();
            prop_assert!(partial <= 1);
            // At most one bin is less than half full, or they would share one.
            let poor = batches.iter().flatten().filter(|bin| rows(bin) * 2 < 64).count();
            prop_assert!(batching != Batching::Packed || poor <= 1);
        }
    }
}
