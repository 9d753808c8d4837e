//! Operands of AMX's products: split into parts of bf16, and packed.

use std::ops::Range;

use super::cpu::Order;
use crate::{
    simd::{
        Avx512, Element, Simd,
        amx::{self, PARTS, REGISTER, SIDE, STEPS},
    },
    view::Floats,
};

/// Floats of a step that a part of a tile's rows takes, or of its columns.
pub(crate) const PART: usize = 2 * REGISTER / STEPS;

/// Floats of a step that a tile's rows take.
pub(crate) const BLOCK: usize = PARTS * PART;

/// How many groups of steps before its use a number is fetched, where a row's follow each other.
const GROUPS_AHEAD: usize = 8;

/// Parts of bf16 that hold all digits.
pub(crate) fn parts(weight: &Floats<'_>) -> usize {
    match weight {
        Floats::F32(_) => PARTS,
        Floats::F16(_) => 2,
        Floats::Bf16(_) => 1,
    }
}

/// Packs some steps of up to [`TILE`] rows of `x`, which comes with its order and stride.
///
/// # Safety
/// From `to` on there must be room for [`PARTS`] parts of all groups of steps.
#[inline(always)]
pub(crate) unsafe fn pack_rows(
    simd: Avx512,
    (x, order, stride): (&[f32], Order, usize),
    rows: Range<usize>,
    steps: Range<usize>,
    to: *mut f32,
) {
    for half in 0..2 {
        let start = rows.start + half * SIDE;
        let lines = start.min(rows.end)..(start + SIDE).min(rows.end);
        let source = Source { order, stride, lines, steps: steps.clone() };
        // SAFETY: the caller's promise.
        unsafe {
            source.pack::<_, PARTS>(simd, x, Order::InputsLast, to.wrapping_add(half * REGISTER), PARTS);
        }
    }
}

/// Up to 16 rows of `x`, or outputs of a weight, and some of their steps.
pub(crate) struct Source {
    pub(crate) order: Order,
    /// From a row, as they lie in memory, to the next.
    pub(crate) stride: usize,
    /// The rows or outputs.
    pub(crate) lines: Range<usize>,
    pub(crate) steps: Range<usize>,
}

impl Source {
    /// Packs outputs of a weight as half of a tile's columns, in `room` parts.
    ///
    /// # Safety
    /// As for [`pack`](Self::pack).
    #[inline(always)]
    pub(crate) unsafe fn pack_weights(&self, simd: Avx512, weight: &Floats<'_>, to: *mut f32, room: usize) {
        let order = Order::InputsFirst;
        // SAFETY: the caller's promise.
        unsafe {
            match *weight {
                Floats::Bf16(numbers) => self.pack::<_, 1>(simd, numbers, order, to, room),
                Floats::F16(numbers) => self.pack::<_, 2>(simd, numbers, order, to, room),
                Floats::F32(numbers) => self.pack::<_, 3>(simd, numbers, order, to, room),
            }
        }
    }

    /// Packs them in registers' worths, [`STEPS`] steps each: row by row in one, or pair by pair of steps. A step's pair is the
    /// sixteenth after it. Of `room` parts, `COUNT` are not zero.
    ///
    /// # Safety
    /// From `to` on there must be room for a register of every second one's size, all groups and parts.
    #[inline(always)]
    unsafe fn pack<T: Element, const COUNT: usize>(
        &self,
        simd: Avx512,
        numbers: &[T],
        order: Order,
        to: *mut f32,
        room: usize,
    ) {
        let lines = self.lines.len();
        let end = match self.order {
            Order::InputsLast => self.lines.end.saturating_sub(1) * self.stride + self.steps.end,
            Order::InputsFirst => self.steps.end.saturating_sub(1) * self.stride + self.lines.end,
        };
        assert!(lines == 0 || self.steps.is_empty() || end <= numbers.len());
        let zero = simd.splat(0.0);
        let ahead = match self.order {
            Order::InputsLast => GROUPS_AHEAD * STEPS,
            Order::InputsFirst => STEPS * self.stride,
        };
        for (group, step) in self.steps.clone().step_by(STEPS).enumerate() {
            let left = self.steps.end - step;
            // Of the first and second vectors of pairs: how many there are, and how many lanes they have.
            let (vectors, lanes, place, second) = match self.order {
                Order::InputsLast => {
                    let lanes = [left.min(SIDE), left.saturating_sub(SIDE).min(SIDE)];
                    ([lines; 2], lanes, self.lines.start * self.stride + step, SIDE)
                }
                Order::InputsFirst => {
                    let vectors = [left.min(SIDE), left.saturating_sub(SIDE).min(SIDE)];
                    (vectors, [lines; 2], step * self.stride + self.lines.start, SIDE * self.stride)
                }
            };
            let is_whole = lines == SIDE && left >= STEPS;
            let to = to.wrapping_add(group * room * 2 * REGISTER);
            for vector in 0..SIDE {
                let from = [0, second]
                    .map(|offset| numbers.as_ptr().wrapping_add(place + offset + vector * self.stride));
                // SAFETY: only numbers in the ranges are read, and those exist: checked above. The room is the caller's promise.
                unsafe {
                    let [first, second] = if is_whole {
                        from.iter().for_each(|from| simd.prefetch(from.wrapping_add(ahead)));
                        [T::load(simd, from[0]), T::load(simd, from[1])]
                    } else {
                        let count = |half: usize| if vector < vectors[half] { lanes[half] } else { 0 };
                        [T::load_first(simd, from[0], count(0)), T::load_first(simd, from[1], count(1))]
                    };
                    let parts = amx::split::<COUNT>(simd, first, second);
                    for part in 0..room {
                        let to = to.wrapping_add(part * 2 * REGISTER + vector * SIDE);
                        simd.store(to, *parts.get(part).unwrap_or(&zero));
                    }
                }
            }
            if self.order != order {
                for part in 0..COUNT {
                    // SAFETY: as above.
                    unsafe { transpose(simd, to.wrapping_add(part * 2 * REGISTER)) };
                }
            }
        }
    }
}

/// Transposes a register's worth.
///
/// # Safety
/// It must be readable and writable.
#[inline(always)]
unsafe fn transpose(simd: Avx512, tile: *mut f32) {
    let mut vectors = [simd.splat(0.0); SIDE];
    // SAFETY: the caller's promise.
    unsafe {
        for (index, vector) in vectors.iter_mut().enumerate() {
            *vector = simd.load(tile.wrapping_add(index * SIDE));
        }
        simd.transpose(&mut vectors);
        for (index, &vector) in vectors.iter().enumerate() {
            simd.store(tile.wrapping_add(index * SIDE), vector);
        }
    }
}
