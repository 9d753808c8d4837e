//! 8 lanes in pairs of the 4-lane registers of 64-bit ARM: two chains of additions per value hide more of
//! the latency.

use std::arch::{aarch64::*, asm};

use super::{Simd, Work};

const LANES: usize = 8;

/// Every 64-bit ARM processor has NEON.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// # Safety
    /// None is needed; it is unsafe to look like the other levels.
    #[inline(always)]
    pub(crate) unsafe fn assume() -> Self {
        Self(())
    }

    #[inline(always)]
    fn widen_bf16(self, bits: uint16x8_t) -> Pair {
        // SAFETY: NEON is always there.
        unsafe {
            Pair(
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(bits))),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_high_u16(bits))),
            )
        }
    }

    #[inline(always)]
    fn narrow_bf16(self, a: Pair) -> uint16x8_t {
        // SAFETY: as above.
        unsafe { vcombine_u16(narrow_bf16(a.0), narrow_bf16(a.1)) }
    }

    #[inline(always)]
    fn widen_f16(self, bits: uint16x8_t) -> Pair {
        let (low, high): (float32x4_t, float32x4_t);
        // SAFETY: these conversions are part of every 64-bit ARM processor and touch only registers.
        unsafe {
            asm!(
                "fcvtl {low:v}.4s, {bits:v}.4h",
                "fcvtl2 {high:v}.4s, {bits:v}.8h",
                bits = in(vreg) bits,
                low = out(vreg) low,
                high = lateout(vreg) high,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        Pair(low, high)
    }

    #[inline(always)]
    fn narrow_f16(self, a: Pair) -> uint16x8_t {
        let bits: uint16x8_t;
        // SAFETY: as above.
        unsafe {
            asm!(
                "fcvtn {bits:v}.4h, {low:v}.4s",
                "fcvtn2 {bits:v}.8h, {high:v}.4s",
                bits = out(vreg) bits,
                low = in(vreg) a.0,
                high = in(vreg) a.1,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        bits
    }

    /// # Safety
    /// `count` numbers must be writable.
    #[inline(always)]
    unsafe fn store_first_bits(self, to: *mut u16, a: uint16x8_t, count: usize) {
        debug_assert!(count <= LANES);
        let mut bits = [0u16; LANES];
        // SAFETY: the caller promised the memory; `bits` holds 8 numbers.
        unsafe {
            vst1q_u16(bits.as_mut_ptr(), a);
            std::ptr::copy_nonoverlapping(bits.as_ptr(), to, count);
        }
    }

    /// # Safety
    /// `count` numbers must be readable.
    #[inline(always)]
    unsafe fn load_first_bits(self, from: *const u16, count: usize) -> uint16x8_t {
        debug_assert!(count <= LANES);
        let mut bits = [0u16; LANES];
        // SAFETY: as above.
        unsafe {
            std::ptr::copy_nonoverlapping(from, bits.as_mut_ptr(), count);
            vld1q_u16(bits.as_ptr())
        }
    }
}

/// Two registers as one vector.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pair(float32x4_t, float32x4_t);

/// Methods that are one instruction per register.
macro_rules! instructions {
    ($($name:ident($($argument:ident),+) = $intrinsic:ident;)+) => {
        $(#[inline(always)]
        fn $name(self, $($argument: Pair),+) -> Pair {
            // SAFETY: NEON is always there.
            unsafe { Pair($intrinsic($($argument.0),+), $intrinsic($($argument.1),+)) }
        })+
    };
}

impl Simd for Neon {
    type Vector = Pair;
    const LANES: usize = LANES;
    const REGISTERS: usize = 16;

    #[inline(never)]
    fn apart(self, work: impl Work) {
        work.run(self);
    }

    instructions! {
        add(a, b) = vaddq_f32;
        sub(a, b) = vsubq_f32;
        mul(a, b) = vmulq_f32;
        div(a, b) = vdivq_f32;
        max(a, b) = vmaxq_f32;
        min(a, b) = vminq_f32;
        abs(a) = vabsq_f32;
        sqrt(a) = vsqrtq_f32;
        round(a) = vrndnq_f32;
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Pair {
        // SAFETY: NEON is always there.
        unsafe { Pair(vdupq_n_f32(value), vdupq_n_f32(value)) }
    }

    #[inline(always)]
    fn fma(self, a: Pair, b: Pair, c: Pair) -> Pair {
        // SAFETY: as above.
        unsafe { Pair(vfmaq_f32(c.0, a.0, b.0), vfmaq_f32(c.1, a.1, b.1)) }
    }

    #[inline(always)]
    fn scale_by_power(self, a: Pair, n: Pair) -> Pair {
        // SAFETY: as above.
        unsafe { Pair(scale_by_power(a.0, n.0), scale_by_power(a.1, n.1)) }
    }

    #[inline(always)]
    fn select_less(self, a: Pair, b: Pair, then: Pair, otherwise: Pair) -> Pair {
        // SAFETY: as above.
        unsafe {
            Pair(
                vbslq_f32(vcltq_f32(a.0, b.0), then.0, otherwise.0),
                vbslq_f32(vcltq_f32(a.1, b.1), then.1, otherwise.1),
            )
        }
    }

    #[inline(always)]
    fn not_less(self, a: Pair, b: Pair) -> u32 {
        const BITS: [u32; 4] = [1, 2, 4, 8];
        // SAFETY: as above.
        unsafe {
            let bits = vld1q_u32(BITS.as_ptr());
            let [first, second] =
                [(a.0, b.0), (a.1, b.1)].map(|(a, b)| vaddvq_u32(vbicq_u32(bits, vcltq_f32(a, b))));
            first | second << 4
        }
    }

    #[inline(always)]
    fn swap_neighbours(self, a: Pair) -> Pair {
        // SAFETY: as above.
        unsafe { Pair(vrev64q_f32(a.0), vrev64q_f32(a.1)) }
    }

    #[inline(always)]
    fn reduce_add(self, a: Pair) -> f32 {
        // SAFETY: as above.
        unsafe { vaddvq_f32(vaddq_f32(a.0, a.1)) }
    }

    #[inline(always)]
    fn reduce_max(self, a: Pair) -> f32 {
        // SAFETY: as above.
        unsafe { vmaxvq_f32(vmaxq_f32(a.0, a.1)) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Pair {
        // SAFETY: the caller promised the memory.
        unsafe { Pair(vld1q_f32(from), vld1q_f32(from.add(4))) }
    }

    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, count: usize) -> Pair {
        debug_assert!(count <= LANES);
        let mut lanes = [0f32; LANES];
        // SAFETY: as above; `lanes` holds 8 numbers.
        unsafe {
            std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), count);
            self.load(lanes.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, a: Pair) {
        // SAFETY: as above.
        unsafe {
            vst1q_f32(to, a.0);
            vst1q_f32(to.add(4), a.1);
        }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, a: Pair, count: usize) {
        debug_assert!(count <= LANES);
        let mut lanes = [0f32; LANES];
        // SAFETY: as above.
        unsafe {
            self.store(lanes.as_mut_ptr(), a);
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, count);
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> Pair {
        // SAFETY: as above.
        unsafe { self.widen_bf16(vld1q_u16(from)) }
    }

    #[inline(always)]
    unsafe fn load_first_bf16(self, from: *const u16, count: usize) -> Pair {
        // SAFETY: as above.
        unsafe { self.widen_bf16(self.load_first_bits(from, count)) }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16, a: Pair) {
        // SAFETY: as above.
        unsafe { vst1q_u16(to, self.narrow_bf16(a)) }
    }

    #[inline(always)]
    unsafe fn store_first_bf16(self, to: *mut u16, a: Pair, count: usize) {
        // SAFETY: as above.
        unsafe { self.store_first_bits(to, self.narrow_bf16(a), count) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> Pair {
        // SAFETY: as above.
        unsafe { self.widen_f16(vld1q_u16(from)) }
    }

    #[inline(always)]
    unsafe fn load_first_f16(self, from: *const u16, count: usize) -> Pair {
        // SAFETY: as above.
        unsafe { self.widen_f16(self.load_first_bits(from, count)) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16, a: Pair) {
        // SAFETY: as above.
        unsafe { vst1q_u16(to, self.narrow_f16(a)) }
    }

    #[inline(always)]
    unsafe fn store_first_f16(self, to: *mut u16, a: Pair, count: usize) {
        // SAFETY: as above.
        unsafe { self.store_first_bits(to, self.narrow_f16(a), count) }
    }

    #[inline(always)]
    fn transpose(self, tile: &mut [Pair; 16]) {
        // SAFETY: NEON is always there.
        unsafe {
            let [a, b, c, d, e, f, g, h] = [0, 1, 2, 3, 4, 5, 6, 7].map(|row: usize| tile[row]);
            let upper_left = transpose_4(a.0, b.0, c.0, d.0);
            let upper_right = transpose_4(a.1, b.1, c.1, d.1);
            let lower_left = transpose_4(e.0, f.0, g.0, h.0);
            let lower_right = transpose_4(e.1, f.1, g.1, h.1);
            for column in 0..4 {
                tile[column] = Pair(upper_left[column], lower_left[column]);
                tile[column + 4] = Pair(upper_right[column], lower_right[column]);
            }
        }
    }

    #[inline(always)]
    unsafe fn load_two(self, low: *const f32, high: *const f32) -> Pair {
        // SAFETY: the caller promised the memory.
        unsafe { Pair(vld1q_f32(low), vld1q_f32(high)) }
    }

    #[inline(always)]
    fn transpose_pairs(self, tile: &mut [Pair; 16]) {
        let [a, b, c, d] = [tile[0], tile[1], tile[2], tile[3]];
        // SAFETY: NEON is always there.
        let [upper, lower] = unsafe { [transpose_4(a.0, b.0, c.0, d.0), transpose_4(a.1, b.1, c.1, d.1)] };
        for column in 0..4 {
            tile[column] = Pair(upper[column], lower[column]);
        }
    }

    #[inline(always)]
    fn prefetch<T>(self, address: *const T) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe {
            asm!(
                "prfm pldl1keep, [{address}]",
                address = in(reg) address,
                options(readonly, nostack, preserves_flags)
            );
        }
    }

    #[inline(always)]
    fn prefetch_outer<T>(self, address: *const T) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe {
            asm!(
                "prfm pldl2keep, [{address}]",
                address = in(reg) address,
                options(readonly, nostack, preserves_flags)
            );
        }
    }

    #[inline(always)]
    fn prefetch_to_write<T>(self, address: *mut T) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe {
            asm!(
                "prfm pstl1keep, [{address}]",
                address = in(reg) address,
                options(readonly, nostack, preserves_flags)
            );
        }
    }
}

/// # Safety
/// None beyond NEON, which is always there (as for the helpers below).
#[inline(always)]
unsafe fn narrow_bf16(a: float32x4_t) -> uint16x4_t {
    // SAFETY: registers only.
    unsafe {
        let bits = vreinterpretq_u32_f32(a);
        let upper = vshrq_n_u32::<16>(bits);
        let odd = vandq_u32(upper, vdupq_n_u32(1));
        let rounded = vshrq_n_u32::<16>(vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff))));
        let quiet = vorrq_u32(upper, vdupq_n_u32(0x40));
        vmovn_u32(vbslq_u32(vceqq_f32(a, a), rounded, quiet))
    }
}

/// # Safety
/// As above.
#[inline(always)]
unsafe fn scale_by_power(a: float32x4_t, n: float32x4_t) -> float32x4_t {
    // SAFETY: registers only.
    unsafe {
        // In two steps, so that each power is a normal number.
        let n = vcvtq_s32_f32(n);
        let half = vshrq_n_s32::<1>(n);
        let bias = vdupq_n_s32(127);
        let first = vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(half, bias)));
        let second = vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vsubq_s32(n, half), bias)));
        vmulq_f32(vmulq_f32(a, first), second)
    }
}

/// # Safety
/// As above.
#[inline(always)]
unsafe fn transpose_4(a: float32x4_t, b: float32x4_t, c: float32x4_t, d: float32x4_t) -> [float32x4_t; 4] {
    // SAFETY: registers only.
    unsafe {
        let [ab_even, ab_odd] = [vtrn1q_f32(a, b), vtrn2q_f32(a, b)].map(|v| vreinterpretq_f64_f32(v));
        let [cd_even, cd_odd] = [vtrn1q_f32(c, d), vtrn2q_f32(c, d)].map(|v| vreinterpretq_f64_f32(v));
        [
            vreinterpretq_f32_f64(vtrn1q_f64(ab_even, cd_even)),
            vreinterpretq_f32_f64(vtrn1q_f64(ab_odd, cd_odd)),
            vreinterpretq_f32_f64(vtrn2q_f64(ab_even, cd_even)),
            vreinterpretq_f32_f64(vtrn2q_f64(ab_odd, cd_odd)),
        ]
    }
}
