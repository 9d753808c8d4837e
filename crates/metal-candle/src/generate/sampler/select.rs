//! The largest logits, by selection instead of sorting.

use super::{
    histogram::Histogram,
    scan::{self, BLOCK, passes},
};

/// Memory that is kept between selections.
#[derive(Clone, Debug, Default)]
pub(super) struct Scratch {
    histogram: Histogram,
    border: Vec<u64>,
}

/// Finds the `count` largest of `logits`, whose block maxima are `maxima`, and leaves their keys in `best`, in no
/// order. Of equal logits the lower positions are taken.
pub(super) fn select_largest(
    logits: &[f32],
    maxima: &[f32],
    count: usize,
    scratch: &mut Scratch,
    best: &mut Vec<u64>,
) {
    best.clear();
    if count >= logits.len() {
        best.extend(logits.iter().enumerate().map(|(position, &logit)| member(descending(logit), position)));
    } else if count <= maxima.len() {
        select_few(logits, maxima, count, best);
    } else {
        select_many(logits, scan::largest(maxima), count, scratch, best);
    }
}

/// The position in a key.
pub(super) fn position_of(member: u64) -> usize {
    member as u32 as usize
}

/// A key that sorts by `key` and then by position.
#[inline(always)]
pub(super) fn member(key: u32, position: usize) -> u64 {
    u64::from(key) << 32 | position as u64
}

/// No more than there are blocks: the count-th largest block maximum is a bound, as that many logits are at least as
/// large, and few blocks hold any.
fn select_few(logits: &[f32], maxima: &[f32], count: usize, best: &mut Vec<u64>) {
    best.extend(maxima.iter().map(|&maximum| u64::from(descending(maximum))));
    let (_, &mut bound, _) = best.select_nth_unstable(count - 1);
    best.clear();
    for (block, (logits, &maximum)) in logits.chunks(BLOCK).zip(maxima).enumerate() {
        if u64::from(descending(maximum)) > bound {
            continue;
        }
        for (offset, &logit) in logits.iter().enumerate() {
            let key = descending(logit);
            if u64::from(key) <= bound {
                best.push(member(key, block * BLOCK + offset));
            }
        }
    }
    if count < best.len() {
        best.select_nth_unstable(count - 1);
        best.truncate(count);
    }
}

/// A large part of the vocabulary: a histogram finds the place of the smallest logit that is taken, a second pass takes
/// all up to that place, in the order of their positions; what is too much goes again.
fn select_many(logits: &[f32], top: f32, count: usize, scratch: &mut Scratch, best: &mut Vec<u64>) {
    let Scratch { histogram, border } = scratch;
    histogram.count(logits, top);
    let (bucket, missing) = histogram.border(count as f64).expect("there are more logits than are asked for");
    border.clear();
    take_up_to(logits, top, bucket, best, border);
    if count < best.len() {
        let (_, &mut last, _) = border.select_nth_unstable(missing as usize - 1);
        keep_up_to(best, last);
    }
}

passes! {
    /// Appends the keys of the logits whose place is not beyond `bucket`, and of those at `bucket` also to `border`.
    fn take_up_to<'a>(logits: &'a [f32], top: f32, bucket: i32, best: &'a mut Vec<u64>, border: &'a mut Vec<u64>) {
        let mut places = [0i32; BLOCK];
        let mut keys = [0u64; BLOCK];
        for (block, logits) in logits.chunks(BLOCK).enumerate() {
            // Places behind a partial block are beyond every bucket.
            places.fill(i32::MAX);
            scan::places(logits, top, &mut places);
            let mut is_border = false;
            for &place in &places {
                is_border |= place == bucket;
            }
            for (offset, (key, &logit)) in keys.iter_mut().zip(logits).enumerate() {
                *key = member(descending(logit), block * BLOCK + offset);
            }
            // Without a branch for each: it would be taken at random.
            let mut taken = [0u64; BLOCK];
            let mut count = 0;
            for (&key, &place) in keys.iter().zip(&places) {
                taken[count % BLOCK] = key;
                count += usize::from(place <= bucket);
            }
            best.extend_from_slice(&taken[..count]);
            if is_border {
                let mut count = 0;
                for (&key, &place) in keys.iter().zip(&places) {
                    taken[count % BLOCK] = key;
                    count += usize::from(place == bucket);
                }
                border.extend_from_slice(&taken[..count]);
            }
        }
    }
}

/// Drops the keys above `last`, without a branch for each.
fn keep_up_to(best: &mut Vec<u64>, last: u64) {
    let mut kept = 0;
    for index in 0..best.len() {
        let key = best[index];
        best[kept] = key;
        kept += usize::from(key <= last);
    }
    best.truncate(kept);
}

/// A key that sorts larger numbers first and knows one zero only.
#[inline(always)]
fn descending(logit: f32) -> u32 {
    let bits = (logit + 0.0).to_bits();
    let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    !ascending
}
