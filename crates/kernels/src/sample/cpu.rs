//! The CPU implementation: vectors find the few places worth looking at, and those are compared by key.
//!
//! A row costs one pass over it and little else: of numbers in no order, about `k` come into the best so far each time
//! that twice as many have been seen.

use candle_core::{Device, Result, Tensor, bail};

use crate::{
    pool,
    simd::{Element, Simd, dispatch},
    view::{Floats, View},
};

/// Elements of a row that set the first bar, at least.
const FIRST: usize = 256;
/// Rows of fewer elements than this stay on this thread.
const TASK: usize = 16 * 1024;
/// A call of fewer rows splits each of them into up to as many parts as this: too few tasks otherwise, while each part
/// has to find a bar of its own.
const PARTS: usize = 4;

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
    let parts = if rows < PARTS { (vocabulary / TASK).clamp(1, PARTS) } else { 1 };
    let mut members = vec![0; rows * parts * k];
    let run = |task: usize, members: &mut [Member]| {
        let (row, part) = (task / parts * vocabulary, task % parts);
        let [first, end] = [part, part + 1].map(|part| part * vocabulary / parts);
        let range = row + first..row + end;
        match logits {
            Floats::F32(logits) => select_row(&logits[range], first, members),
            Floats::Bf16(logits) => select_row(&logits[range], first, members),
            Floats::F16(logits) => select_row(&logits[range], first, members),
        }
    };
    if rows * vocabulary < TASK {
        members.chunks_exact_mut(k).enumerate().for_each(|(task, members)| run(task, members));
    } else {
        pool::for_each_part(&mut members, k, run);
    }
    if parts == 1 {
        return Ok(members);
    }
    let best = members.chunks_exact_mut(parts * k).flat_map(|of_row| {
        of_row.sort_unstable_by(|left, right| right.cmp(left));
        of_row[..k].iter().copied()
    });
    Ok(best.collect())
}

/// The best of a row, or of the part of it that begins at `first`, best first.
fn select_row<W: Element>(row: &[W], first: usize, members: &mut [Member]) {
    let k = members.len();
    let (head, _) = row.split_at(row.len().min(FIRST.max(k)));
    let mut kept = Kept { members: Vec::with_capacity((2 * k).max(64) + UNROLLED * 16 + head.len()), k };
    kept.members.extend(head.iter().enumerate().map(|(place, number)| member(number.widen(), first + place)));
    if head.len() < row.len() {
        scan(row, head.len(), first, &mut kept);
    }
    kept.members.sort_unstable_by(|left, right| right.cmp(left));
    members.copy_from_slice(&kept.members[..k]);
}

/// The best so far, and some that are not.
struct Kept {
    members: Vec<Member>,
    k: usize,
}

impl Kept {
    /// Drops all but the best `k`; returns the worst of them.
    fn raise(&mut self) -> f32 {
        let best = |left: &Member, right: &Member| right.cmp(left);
        let (_, worst, _) = self.members.select_nth_unstable_by(self.k - 1, best);
        let worst = value(*worst);
        self.members.truncate(self.k);
        worst
    }

    fn is_full(&self) -> bool {
        self.members.len() >= (2 * self.k).max(64)
    }
}

/// Vectors that are compared before anything is decided.
const UNROLLED: usize = 4;

dispatch! {
    /// Takes what is above the bar from `row[start..]`; the row's ids begin at `first`.
    fn scan<W: Element>(row: &[W], start: usize, first: usize, kept: &mut Kept) = scan_with;
}

#[inline(always)]
fn scan_with<S: Simd, W: Element>(simd: S, row: &[W], start: usize, first: usize, kept: &mut Kept) {
    let mut bar = kept.raise();
    let mut place = start;
    while place < row.len() && !bar.is_nan() {
        // What is not less than the next number after the bar is above it, or a NaN.
        let next = simd.splat(bar.next_up());
        let mut found = [0; UNROLLED];
        while place + UNROLLED * S::LANES <= row.len() {
            for (index, found) in found.iter_mut().enumerate() {
                // SAFETY: the vectors are within the row.
                let values = unsafe { W::load(simd, row.as_ptr().add(place + index * S::LANES)) };
                *found = simd.not_less(values, next);
            }
            if found.iter().any(|found| *found != 0) {
                break;
            }
            place += UNROLLED * S::LANES;
        }
        let is_whole = place + UNROLLED * S::LANES <= row.len();
        if !is_whole {
            // The rest of the row, a few vectors: not worth comparing.
            kept.members.extend(
                row[place..]
                    .iter()
                    .enumerate()
                    .map(|(index, number)| member(number.widen(), first + place + index)),
            );
            return;
        }
        for (index, found) in found.iter_mut().enumerate() {
            while *found != 0 {
                let at = place + index * S::LANES + found.trailing_zeros() as usize;
                kept.members.push(member(row[at].widen(), first + at));
                *found &= *found - 1;
            }
        }
        place += UNROLLED * S::LANES;
        if kept.is_full() {
            bar = kept.raise();
        }
    }
}
