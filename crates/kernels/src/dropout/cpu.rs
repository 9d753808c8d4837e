//! The CPU implementation. Random words are integers, which `Simd` has not: they are computed in loops over short
//! arrays, which the compiler turns into vectors for the instruction set that `dispatch!` names.

use candle_core::{Result, Tensor};
use half::{bf16, f16};

use super::Dropout;
use crate::{
    fresh::Fresh,
    output::{Output, filled},
    pool,
    simd::{Element, Simd, dispatch},
    view::{Floats, View},
};

/// Elements per task.
const TASK: usize = 16 * 1024;
/// Counters that are computed together, and the words that they give.
const COUNTERS: usize = 16;
const WORDS: usize = 4 * COUNTERS;

pub(super) fn dropout(x: &Tensor, dropout: &Dropout) -> Result<Fresh> {
    let shape = x.shape();
    let x = View::new(x);
    Ok(match x.floats("dropout: `x`")? {
        Floats::F32(x) => Fresh::from_vec(dropped(x, dropout), shape),
        Floats::F16(x) => Fresh::from_vec::<f16>(dropped(x, dropout), shape),
        Floats::Bf16(x) => Fresh::from_vec::<bf16>(dropped(x, dropout), shape),
    })
}

fn dropped<T: Element>(x: &[T], dropout: &Dropout) -> Vec<T> {
    let run = |y: Output<T>| {
        pool::for_each(x.len().div_ceil(TASK), &|task| {
            let part = task * TASK..x.len().min((task + 1) * TASK);
            let first = dropout.first.wrapping_add(part.start as u64);
            // SAFETY: the parts lie within both and do not overlap.
            unsafe { drop_part(x[part.clone()].as_ptr(), y.at(part.start), part.len(), first, dropout) };
        });
    };
    // SAFETY: the parts cover all elements.
    unsafe { filled(x.len(), run) }
}

dispatch! {
    unsafe fn drop_part<T: Element>(
        x: *const T,
        y: *mut T,
        count: usize,
        first: u64,
        dropout: &Dropout
    ) = drop_part_with;
}

/// # Safety
/// `count` elements are readable at `x` and writable at `y`.
#[inline(always)]
unsafe fn drop_part_with<S: Simd, T: Element>(
    simd: S,
    x: *const T,
    y: *mut T,
    count: usize,
    first: u64,
    dropout: &Dropout,
) {
    let (threshold, factor, zero) = (dropout.threshold(), dropout.factor(), simd.splat(0.));
    let mut factors = [0f32; WORDS + 16];
    // Words of the first counter that belong to elements before the part.
    let mut skip = (first % 4) as usize;
    let (mut counter, mut done) = (first / 4, 0);
    while done < count {
        let words = words(counter, dropout.seed);
        for index in 0..WORDS {
            factors[index] = if words[index] < threshold { 0. } else { factor };
        }
        let here = (WORDS - skip).min(count - done);
        for column in (0..here).step_by(S::LANES) {
            let lanes = S::LANES.min(here - column);
            // SAFETY: `lanes` elements are within the part, and behind the factors are as many as a vector has.
            unsafe {
                let value = T::load_first(simd, x.add(done + column), lanes);
                let by = simd.load(factors.as_ptr().add(skip + column));
                // Not only a product: what is dropped may be infinite.
                let kept = simd.select_less(zero, by, simd.mul(value, by), zero);
                T::store_first(simd, y.add(done + column), kept, lanes);
            }
        }
        done += here;
        counter = counter.wrapping_add(COUNTERS as u64);
        skip = 0;
    }
}

/// The words of `COUNTERS` counters from `counter` on, in order.
#[allow(clippy::needless_range_loop, reason = "loops over lanes become vectors")]
#[inline(always)]
fn words(counter: u64, seed: u64) -> [u32; WORDS] {
    let (mut key0, mut key1) = (seed as u32, (seed >> 32) as u32);
    let mut state = [[0u32; COUNTERS]; 4];
    for lane in 0..COUNTERS {
        let counter = counter.wrapping_add(lane as u64);
        state[0][lane] = counter as u32;
        state[1][lane] = (counter >> 32) as u32;
    }
    for _ in 0..7 {
        for lane in 0..COUNTERS {
            let first = u64::from(state[0][lane]) * 0xd251_1f53;
            let second = u64::from(state[2][lane]) * 0xcd9e_8d57;
            state[0][lane] = (second >> 32) as u32 ^ state[1][lane] ^ key0;
            state[1][lane] = second as u32;
            state[2][lane] = (first >> 32) as u32 ^ state[3][lane] ^ key1;
            state[3][lane] = first as u32;
        }
        key0 = key0.wrapping_add(0x9e37_79b9);
        key1 = key1.wrapping_add(0xbb67_ae85);
    }
    let mut words = [0; WORDS];
    for lane in 0..COUNTERS {
        for word in 0..4 {
            words[4 * lane + word] = state[word][lane];
        }
    }
    words
}
