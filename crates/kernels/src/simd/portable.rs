//! 8 lanes in plain Rust, for machines without a level of their own and as a check on the others.

use std::cmp::Ordering;

use half::{bf16, f16};

use super::{Simd, Work};

const LANES: usize = 8;

/// Needs nothing of the machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

type Vector = [f32; LANES];

#[inline(always)]
fn map2(a: Vector, b: Vector, of: impl Fn(f32, f32) -> f32) -> Vector {
    std::array::from_fn(|lane| of(a[lane], b[lane]))
}

impl Simd for Portable {
    type Vector = Vector;
    const LANES: usize = LANES;
    const REGISTERS: usize = 16;

    #[inline(never)]
    fn apart(self, work: impl Work) {
        work.run(self);
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Vector {
        [value; LANES]
    }
    #[inline(always)]
    fn add(self, a: Vector, b: Vector) -> Vector {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Vector, b: Vector) -> Vector {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Vector, b: Vector) -> Vector {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Vector, b: Vector) -> Vector {
        map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: Vector, b: Vector, c: Vector) -> Vector {
        // Without the instruction, `mul_add` would be a slow call.
        std::array::from_fn(|lane| a[lane] * b[lane] + c[lane])
    }
    #[inline(always)]
    fn max(self, a: Vector, b: Vector) -> Vector {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Vector, b: Vector) -> Vector {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn abs(self, a: Vector) -> Vector {
        a.map(f32::abs)
    }
    #[inline(always)]
    fn sqrt(self, a: Vector) -> Vector {
        a.map(f32::sqrt)
    }
    #[inline(always)]
    fn round(self, a: Vector) -> Vector {
        // Adding and subtracting 1.5·2²³ leaves the nearest integer.
        const SHIFT: f32 = 12_582_912.0;
        a.map(|a| (a + SHIFT) - SHIFT)
    }
    #[inline(always)]
    fn scale_by_power(self, a: Vector, n: Vector) -> Vector {
        // In two steps, so that each power is a normal number.
        let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
        map2(a, n, |a, n| {
            let n = n as i32;
            a * power(n >> 1) * power(n - (n >> 1))
        })
    }
    #[inline(always)]
    fn select_less(self, a: Vector, b: Vector, then: Vector, otherwise: Vector) -> Vector {
        std::array::from_fn(|lane| if a[lane] < b[lane] { then[lane] } else { otherwise[lane] })
    }
    #[inline(always)]
    fn not_less(self, a: Vector, b: Vector) -> u32 {
        (0..LANES).fold(0, |bits, lane| {
            bits | u32::from(a[lane].partial_cmp(&b[lane]) != Some(Ordering::Less)) << lane
        })
    }
    #[inline(always)]
    fn swap_neighbours(self, a: Vector) -> Vector {
        std::array::from_fn(|lane| a[lane ^ 1])
    }
    #[inline(always)]
    fn reduce_add(self, a: Vector) -> f32 {
        ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
    }
    #[inline(always)]
    fn reduce_max(self, a: Vector) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Vector {
        // SAFETY: the caller promised the memory.
        unsafe { from.cast::<Vector>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, count: usize) -> Vector {
        // SAFETY: as above.
        std::array::from_fn(|lane| if lane < count { unsafe { *from.add(lane) } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, a: Vector) {
        // SAFETY: as above.
        unsafe { to.cast::<Vector>().write_unaligned(a) }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, a: Vector, count: usize) {
        // SAFETY: as above; at most `LANES` numbers.
        unsafe { std::ptr::copy_nonoverlapping(a.as_ptr(), to, count.min(LANES)) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> Vector {
        // SAFETY: as above.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(|bits| f32::from_bits(u32::from(bits) << 16))
    }
    #[inline(always)]
    unsafe fn load_first_bf16(self, from: *const u16, count: usize) -> Vector {
        // SAFETY: as above.
        unsafe { read_first(from, count) }.map(|bits| f32::from_bits(u32::from(bits) << 16))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16, a: Vector) {
        // SAFETY: as above.
        unsafe { self.store_first_bf16(to, a, LANES) }
    }
    #[inline(always)]
    unsafe fn store_first_bf16(self, to: *mut u16, a: Vector, count: usize) {
        let bits = a.map(|a| bf16::from_f32(a).to_bits());
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(bits.as_ptr(), to, count.min(LANES)) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> Vector {
        // SAFETY: as above.
        unsafe { self.load_first_f16(from, LANES) }
    }
    #[inline(always)]
    unsafe fn load_first_f16(self, from: *const u16, count: usize) -> Vector {
        // SAFETY: as above.
        unsafe { read_first(from, count) }.map(|bits| f16::from_bits(bits).to_f32())
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16, a: Vector) {
        // SAFETY: as above.
        unsafe { self.store_first_f16(to, a, LANES) }
    }
    #[inline(always)]
    unsafe fn store_first_f16(self, to: *mut u16, a: Vector, count: usize) {
        let bits = a.map(|a| f16::from_f32(a).to_bits());
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(bits.as_ptr(), to, count.min(LANES)) }
    }

    #[inline(always)]
    fn transpose(self, tile: &mut [Vector; 16]) {
        let rows = *tile;
        for (column, vector) in tile.iter_mut().take(LANES).enumerate() {
            *vector = std::array::from_fn(|lane| rows[lane][column]);
        }
    }

    #[inline(always)]
    unsafe fn load_two(self, low: *const f32, high: *const f32) -> Vector {
        let mut vector = [0.; LANES];
        let (to_low, to_high) = vector.split_at_mut(LANES / 2);
        // SAFETY: the caller promised the memory.
        unsafe {
            std::ptr::copy_nonoverlapping(low, to_low.as_mut_ptr(), LANES / 2);
            std::ptr::copy_nonoverlapping(high, to_high.as_mut_ptr(), LANES / 2);
        }
        vector
    }

    #[inline(always)]
    fn transpose_pairs(self, tile: &mut [Vector; 16]) {
        let rows = *tile;
        for (column, vector) in tile.iter_mut().take(LANES / 2).enumerate() {
            *vector = std::array::from_fn(|lane| rows[lane % 4][lane / 4 * 4 + column]);
        }
    }

    #[inline(always)]
    fn prefetch<T>(self, _address: *const T) {}

    #[inline(always)]
    fn prefetch_outer<T>(self, _address: *const T) {}

    #[inline(always)]
    fn prefetch_to_write<T>(self, _address: *mut T) {}
}

/// # Safety
/// `count` numbers must be readable.
#[inline(always)]
unsafe fn read_first(from: *const u16, count: usize) -> [u16; LANES] {
    let mut bits = [0; LANES];
    // SAFETY: the caller promised the memory.
    unsafe { std::ptr::copy_nonoverlapping(from, bits.as_mut_ptr(), count.min(LANES)) };
    bits
}
