//! 8 lanes in the registers of AVX2.

use std::arch::{asm, x86_64::*};

use super::{Simd, Work};

/// Proof that the machine has AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The machine must have AVX2, FMA and F16C.
    #[inline(always)]
    pub(crate) unsafe fn assume() -> Self {
        Self(())
    }

    /// All bits set in the first `count` lanes.
    #[inline(always)]
    fn first(self, count: usize) -> __m256i {
        debug_assert!(count <= 8);
        // SAFETY: `self` proves that the instructions exist.
        unsafe {
            let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), lane)
        }
    }

    #[inline(always)]
    fn widen_bf16(self, bits: __m128i) -> __m256 {
        // SAFETY: `self` proves that the instructions exist.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits))) }
    }

    #[inline(always)]
    fn narrow_bf16(self, a: __m256) -> __m128i {
        // SAFETY: `self` proves that the instructions exist.
        unsafe {
            let bits = _mm256_castps_si256(a);
            let upper = _mm256_srli_epi32::<16>(bits);
            let odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
            let bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
            let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, bias));
            let quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(a, a));
            let chosen = _mm256_blendv_epi8(rounded, quiet, nan);
            _mm_packus_epi32(_mm256_castsi256_si128(chosen), _mm256_extracti128_si256::<1>(chosen))
        }
    }

    /// # Safety
    /// `count` numbers must be readable.
    #[inline(always)]
    unsafe fn load_first_bits(self, from: *const u16, count: usize) -> __m128i {
        debug_assert!(count <= 8);
        let mut bits = [0u16; 8];
        // SAFETY: the caller promised the memory; `bits` holds 8 numbers.
        unsafe {
            std::ptr::copy_nonoverlapping(from, bits.as_mut_ptr(), count);
            _mm_loadu_si128(bits.as_ptr().cast())
        }
    }

    /// # Safety
    /// `count` numbers must be writable.
    #[inline(always)]
    unsafe fn store_first_bits(self, to: *mut u16, a: __m128i, count: usize) {
        debug_assert!(count <= 8);
        let mut bits = [0u16; 8];
        // SAFETY: the caller promised the memory; `bits` holds 8 numbers.
        unsafe {
            _mm_storeu_si128(bits.as_mut_ptr().cast(), a);
            std::ptr::copy_nonoverlapping(bits.as_ptr(), to, count);
        }
    }
}

/// Methods that are one instruction.
macro_rules! instructions {
    ($($name:ident($($argument:ident),+) = $intrinsic:expr;)+) => {
        $(#[inline(always)]
        fn $name(self, $($argument: __m256),+) -> __m256 {
            // SAFETY: `self` proves that the instruction exists.
            unsafe { $intrinsic($($argument),+) }
        })+
    };
}

impl Simd for Avx2 {
    type Vector = __m256;
    const LANES: usize = 8;
    const REGISTERS: usize = 16;

    #[inline(always)]
    fn apart(self, work: impl Work) {
        #[target_feature(enable = "avx2,fma,f16c")]
        #[inline(never)]
        unsafe fn with_features(simd: Avx2, work: impl Work) {
            work.run(simd);
        }
        // SAFETY: the value is the proof that the machine has the instructions.
        unsafe { with_features(self, work) }
    }

    instructions! {
        add(a, b) = _mm256_add_ps;
        sub(a, b) = _mm256_sub_ps;
        mul(a, b) = _mm256_mul_ps;
        div(a, b) = _mm256_div_ps;
        fma(a, b, c) = _mm256_fmadd_ps;
        max(a, b) = _mm256_max_ps;
        sqrt(a) = _mm256_sqrt_ps;
        min(a, b) = _mm256_min_ps;
        round(a) = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>;
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        // SAFETY: `self` proves that the instruction exists.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    fn abs(self, a: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
    }

    #[inline(always)]
    fn scale_by_power(self, a: __m256, n: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe {
            // In two steps, so that each power is a normal number.
            let n = _mm256_cvtps_epi32(n);
            let half = _mm256_srai_epi32::<1>(n);
            let bias = _mm256_set1_epi32(127);
            let first = _mm256_slli_epi32::<23>(_mm256_add_epi32(half, bias));
            let second = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_sub_epi32(n, half), bias));
            let scaled = _mm256_mul_ps(a, _mm256_castsi256_ps(first));
            _mm256_mul_ps(scaled, _mm256_castsi256_ps(second))
        }
    }

    #[inline(always)]
    fn select_less(self, a: __m256, b: __m256, then: __m256, otherwise: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)) }
    }

    #[inline(always)]
    fn not_less(self, a: __m256, b: __m256) -> u32 {
        // SAFETY: as above.
        (unsafe { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(a, b)) }) as u32
    }

    #[inline(always)]
    fn swap_neighbours(self, a: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_permute_ps::<0b10_11_00_01>(a) }
    }

    #[inline(always)]
    fn reduce_add(self, a: __m256) -> f32 {
        // SAFETY: as above.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn reduce_max(self, a: __m256) -> f32 {
        // SAFETY: as above.
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m256 {
        // SAFETY: `self` proves that the instruction exists; the caller promised the memory.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, count: usize) -> __m256 {
        // SAFETY: as above; masked lanes are not accessed.
        unsafe { _mm256_maskload_ps(from, self.first(count)) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, a: __m256) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(to, a) }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, a: __m256, count: usize) {
        // SAFETY: as above.
        unsafe { _mm256_maskstore_ps(to, self.first(count), a) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> __m256 {
        // SAFETY: as above.
        unsafe { self.widen_bf16(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_first_bf16(self, from: *const u16, count: usize) -> __m256 {
        // SAFETY: as above.
        unsafe { self.widen_bf16(self.load_first_bits(from, count)) }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16, a: __m256) {
        // SAFETY: as above.
        unsafe { _mm_storeu_si128(to.cast(), self.narrow_bf16(a)) }
    }

    #[inline(always)]
    unsafe fn store_first_bf16(self, to: *mut u16, a: __m256, count: usize) {
        // SAFETY: as above.
        unsafe { self.store_first_bits(to, self.narrow_bf16(a), count) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_first_f16(self, from: *const u16, count: usize) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_cvtph_ps(self.load_first_bits(from, count)) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16, a: __m256) {
        // SAFETY: as above.
        unsafe { _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a)) }
    }

    #[inline(always)]
    unsafe fn store_first_f16(self, to: *mut u16, a: __m256, count: usize) {
        // SAFETY: as above.
        unsafe { self.store_first_bits(to, _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a), count) }
    }

    #[inline(always)]
    fn transpose(self, tile: &mut [__m256; 16]) {
        // SAFETY: `self` proves that the instructions exist.
        unsafe {
            // Within each half of a vector: 4 × 4 blocks, by pairs and then by pairs of pairs.
            let mut quads = [_mm256_setzero_ps(); 8];
            for group in 0..2 {
                transpose_quads(&tile[4 * group..], &mut quads[4 * group..]);
            }
            // Then a 2 × 2 transpose of whole halves.
            for column in 0..4 {
                let [upper, lower] = [quads[column], quads[column + 4]];
                tile[column] = _mm256_permute2f128_ps::<0x20>(upper, lower);
                tile[column + 4] = _mm256_permute2f128_ps::<0x31>(upper, lower);
            }
        }
    }

    #[inline(always)]
    unsafe fn load_two(self, low: *const f32, high: *const f32) -> __m256 {
        // SAFETY: the caller promised the memory; `self` proves that the instructions exist.
        unsafe { _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high)) }
    }

    #[inline(always)]
    fn transpose_pairs(self, tile: &mut [__m256; 16]) {
        let rows = [tile[0], tile[1], tile[2], tile[3]];
        // SAFETY: `self` proves that the instructions exist.
        unsafe { transpose_quads(&rows, tile) }
    }

    #[inline(always)]
    fn prefetch<T>(self, address: *const T) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    #[inline(always)]
    fn prefetch_outer<T>(self, address: *const T) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }

    #[inline(always)]
    fn prefetch_to_write<T>(self, address: *mut T) {
        prefetch_to_write(address);
    }
}

/// As [`Simd::prefetch_to_write`], for AVX-512 too.
#[inline(always)]
pub(super) fn prefetch_to_write<T>(address: *mut T) {
    // The intrinsic would become a plain prefetch. Where the processor lacks the instruction, it does nothing.
    // SAFETY: a prefetch of any address is harmless.
    unsafe {
        asm!("prefetchw [{address}]", address = in(reg) address, options(readonly, nostack, preserves_flags));
    }
}

/// The transpose of each 4 × 4 block that four vectors hold in a half.
///
/// # Safety
/// The machine has AVX2; both slices have four vectors.
#[inline(always)]
unsafe fn transpose_quads(from: &[__m256], to: &mut [__m256]) {
    // SAFETY: the caller's promise.
    unsafe {
        let ab_low = _mm256_castps_pd(_mm256_unpacklo_ps(from[0], from[1]));
        let ab_high = _mm256_castps_pd(_mm256_unpackhi_ps(from[0], from[1]));
        let cd_low = _mm256_castps_pd(_mm256_unpacklo_ps(from[2], from[3]));
        let cd_high = _mm256_castps_pd(_mm256_unpackhi_ps(from[2], from[3]));
        to[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(ab_low, cd_low));
        to[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(ab_low, cd_low));
        to[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(ab_high, cd_high));
        to[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(ab_high, cd_high));
    }
}
