//! The CPU implementation: vectors find the few places worth looking at, and those are compared by key.

use candle_core::{Device, Result, Tensor, bail};

use crate::{
    pool,
    simd::{Element, Simd, dispatch, for_vectors},
    view::{Floats, View},
};

/// Elements that are judged at once by their maximum.
const BLOCK: usize = 256;
/// Rows of fewer elements than this stay on this thread.
const TASK: usize = 16 * 1024;

pub(super) fn argmax(logits: &Tensor) -> Result<Tensor> {
    let members = select(logits, 1)?;
    let ids: Vec<u32> = members.into_iter().map(id).collect();
    Tensor::from_vec(ids, logits.dim(0)?, &Device::Cpu)
}

pub(super) fn top_k(logits: &Tensor, k: usize) -> Result<(Tensor, Tensor)> {
    let (rows, _) = logits.dims2()?;
    let members = select(logits, k)?;
    let values: Vec<f32> = members.iter().map(|&member| value(member)).collect();
    let ids: Vec<u32> = members.into_iter().map(id).collect();
    // Widened numbers narrow to what they were.
    let values = Tensor::from_vec(values, (rows, k), &Device::Cpu)?.to_dtype(logits.dtype())?;
    Ok((values, Tensor::from_vec(ids, (rows, k), &Device::Cpu)?))
}

/// A number and its id, such that better is larger: the number's key above the complement of the id.
type Member = u64;

fn member(value: f32, id: usize) -> Member {
    u64::from(key(value)) << 32 | u64::from(!(id as u32))
}

fn id(member: Member) -> u32 {
    !(member as u32)
}

fn value(member: Member) -> f32 {
    let key = (member >> 32) as u32;
    match key {
        u32::MAX => f32::NAN,
        key if key >> 31 == 1 => f32::from_bits(key & 0x7fff_ffff),
        key => f32::from_bits(!key),
    }
}

/// Orders like the number; zeros are equal, and NaN is above all.
fn key(value: f32) -> u32 {
    let bits = (value + 0.).to_bits(); // −0 becomes 0
    if value.is_nan() {
        u32::MAX
    } else if bits >> 31 == 1 {
        !bits
    } else {
        bits | 0x8000_0000
    }
}

/// The best `k` of each row, best first: `[R, k]`.
fn select(logits: &Tensor, k: usize) -> Result<Vec<Member>> {
    let (rows, vocabulary) = logits.dims2()?;
    let view = View::new(logits);
    let logits = match view.floats("the logits") {
        Ok(logits) => logits,
        Err(error) => bail!("sample: {error}"),
    };
    let mut members = vec![0; rows * k];
    let run = |row: usize, members: &mut [Member]| {
        let range = row * vocabulary..(row + 1) * vocabulary;
        match logits {
            Floats::F32(logits) => select_row(&logits[range], members),
            Floats::Bf16(logits) => select_row(&logits[range], members),
            Floats::F16(logits) => select_row(&logits[range], members),
        }
    };
    if rows * vocabulary < TASK {
        members.chunks_exact_mut(k).enumerate().for_each(|(row, members)| run(row, members));
    } else {
        pool::for_each_part(&mut members, k, run);
    }
    Ok(members)
}

/// Keeps the best so far in a heap of twice as many, with the worst of those as the bar for the next.
fn select_row<W: Element>(row: &[W], members: &mut [Member]) {
    let k = members.len();
    let capacity = (2 * k).max(64);
    let mut kept: Vec<Member> = Vec::with_capacity(capacity);
    let mut bar: Option<Member> = None;
    for (index, block) in row.chunks(BLOCK).enumerate() {
        if let Some(bar) = bar
            && !reaches_above(block, value(bar))
        {
            continue;
        }
        for (place, number) in block.iter().enumerate() {
            let member = member(number.widen(), index * BLOCK + place);
            if bar.is_none_or(|bar| member > bar) {
                if kept.len() == capacity {
                    bar = Some(keep(&mut kept, k));
                }
                kept.push(member);
            }
        }
        if kept.len() >= k {
            bar = Some(keep(&mut kept, k));
        }
    }
    kept.sort_unstable_by(|left, right| right.cmp(left));
    members.copy_from_slice(&kept[..k]);
}

/// Drops all but the best `k`; returns the worst of them.
fn keep(kept: &mut Vec<Member>, k: usize) -> Member {
    let (_, worst, _) = kept.select_nth_unstable_by(k - 1, |left, right| right.cmp(left));
    let worst = *worst;
    kept.truncate(k);
    worst
}

dispatch! {
    /// Whether a number of the block is above the bar, or none.
    fn reaches_above<W: Element>(block: &[W], bar: f32) -> bool = reaches_above_with;
}

#[inline(always)]
fn reaches_above_with<S: Simd, W: Element>(simd: S, block: &[W], bar: f32) -> bool {
    let (zero, one, next) = (simd.splat(0.), simd.splat(1.), simd.splat(bar.next_up()));
    let mut found = zero;
    for_vectors!(S, block.len(), |start, count| {
        // SAFETY: `count` elements follow in the block.
        let value = unsafe {
            let from = block.as_ptr().add(start);
            if count == S::LANES { W::load(simd, from) } else { W::load_first(simd, from, count) }
        };
        // Less than the next number after the bar: not above it. A NaN, in either, is not less.
        found = simd.max(found, simd.select_less(value, next, zero, one));
    });
    simd.reduce_max(found) > 0.
}
