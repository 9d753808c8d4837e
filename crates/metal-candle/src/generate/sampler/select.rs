//! The largest logits, by selection instead of sorting.

use super::{
    histogram::Histogram,
    scan::{self, BLOCK},
};

/// Finds the `count` largest of `logits`, whose block maxima are `maxima`, and leaves their keys in `best`, in no
/// order. Of equal logits the lower positions are taken.
pub(super) fn select_largest(
    logits: &[f32],
    maxima: &[f32],
    count: usize,
    histogram: &mut Histogram,
    best: &mut Vec<u64>,
) {
    best.clear();
    if count >= logits.len() {
        best.extend(logits.iter().enumerate().map(|(position, &logit)| member(descending(logit), position)));
    } else if count <= maxima.len() {
        select_few(logits, maxima, count, best);
    } else {
        select_many(logits, maxima, count, histogram, best);
    }
}

/// The position in a key.
pub(super) fn position_of(member: u64) -> usize {
    member as u32 as usize
}

/// A key that sorts by `key` and then by position.
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

/// A large part of the vocabulary: a histogram finds the smallest logit that is taken, a second pass takes. The keys
/// come out in the order of their positions.
fn select_many(logits: &[f32], maxima: &[f32], count: usize, histogram: &mut Histogram, best: &mut Vec<u64>) {
    let top = scan::largest(maxima);
    histogram.clear();
    for logits in logits.chunks(BLOCK) {
        histogram.add(logits, top, &[1.0; BLOCK][..logits.len()]);
    }
    let (bucket, missing) = histogram.border(count as f64).expect("there are more logits than are asked for");
    let mut places = [0i32; BLOCK];
    for (block, logits) in logits.chunks(BLOCK).enumerate() {
        scan::places(logits, top, &mut places);
        take_where(best, logits, block, |offset| places[offset] == bucket);
    }
    let (_, &mut last, _) = best.select_nth_unstable(missing as usize - 1);
    let least = logits[position_of(last)];
    best.clear();
    for (block, logits) in logits.chunks(BLOCK).enumerate() {
        take_where(best, logits, block, |offset| logits[offset] >= least);
    }
    if best.len() > count {
        // Equal to the smallest one, at higher positions.
        best.retain(|&taken| taken <= last);
    }
}

/// Appends the keys of a block's logits that are wanted. Without a branch for each: it would be taken at random.
#[inline(always)]
fn take_where(best: &mut Vec<u64>, logits: &[f32], block: usize, wanted: impl Fn(usize) -> bool) {
    let mut offsets = [0u8; BLOCK];
    let mut taken = 0;
    for offset in 0..logits.len() {
        offsets[taken % BLOCK] = offset as u8;
        taken += usize::from(wanted(offset));
    }
    best.extend(offsets[..taken].iter().map(|&offset| {
        let offset = usize::from(offset);
        member(descending(logits[offset]), block * BLOCK + offset)
    }));
}

/// A key that sorts larger numbers first and knows one zero only.
fn descending(logit: f32) -> u32 {
    let bits = (logit + 0.0).to_bits();
    let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    !ascending
}
