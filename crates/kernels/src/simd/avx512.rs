//! 16 lanes in the registers of AVX-512.

use std::arch::x86_64::*;

use super::{Simd, Work, with_avx512};

/// Proof that the machine has AVX-512 F, BW, VL and DQ.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The machine must have AVX-512 F, BW, VL and DQ.
    #[inline(always)]
    pub(crate) unsafe fn assume() -> Self {
        Self(())
    }

    /// The first `count` lanes.
    #[inline(always)]
    fn first(self, count: usize) -> __mmask16 {
        debug_assert!(count <= 16);
        ((1u32 << count) - 1) as __mmask16
    }

    #[inline(always)]
    fn widen_bf16(self, bits: __m256i) -> __m512 {
        // SAFETY: `self` proves that the instructions exist.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits))) }
    }

    #[inline(always)]
    fn narrow_bf16(self, a: __m512) -> __m256i {
        // SAFETY: `self` proves that the instructions exist.
        unsafe {
            let bits = _mm512_castps_si512(a);
            let upper = _mm512_srli_epi32::<16>(bits);
            let odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
            let bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, bias));
            let quiet = _mm512_or_si512(upper, _mm512_set1_epi32(0x40));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a);
            _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, quiet))
        }
    }
}

/// Methods that are one instruction.
macro_rules! instructions {
    ($($name:ident($($argument:ident),+) = $intrinsic:expr;)+) => {
        $(#[inline(always)]
        fn $name(self, $($argument: __m512),+) -> __m512 {
            // SAFETY: `self` proves that the instruction exists.
            unsafe { $intrinsic($($argument),+) }
        })+
    };
}

impl Simd for Avx512 {
    type Vector = __m512;
    const LANES: usize = 16;
    const REGISTERS: usize = 32;

    #[inline(always)]
    fn apart(self, work: impl Work) {
        with_avx512! {
            #[inline(never)]
            unsafe fn with_features(simd: Avx512, work: impl Work) {
                work.run(simd);
            }
        }
        // SAFETY: the value is the proof that the machine has the instructions.
        unsafe { with_features(self, work) }
    }

    instructions! {
        add(a, b) = _mm512_add_ps;
        sub(a, b) = _mm512_sub_ps;
        mul(a, b) = _mm512_mul_ps;
        div(a, b) = _mm512_div_ps;
        fma(a, b, c) = _mm512_fmadd_ps;
        max(a, b) = _mm512_max_ps;
        min(a, b) = _mm512_min_ps;
        abs(a) = _mm512_abs_ps;
        sqrt(a) = _mm512_sqrt_ps;
        round(a) = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>;
        scale_by_power(a, n) = _mm512_scalef_ps;
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: `self` proves that the instruction exists.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn select_less(self, a: __m512, b: __m512, then: __m512, otherwise: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_mask_mov_ps(otherwise, _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), then) }
    }

    #[inline(always)]
    fn not_less(self, a: __m512, b: __m512) -> u32 {
        // SAFETY: as above.
        u32::from(unsafe { _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(a, b) })
    }

    #[inline(always)]
    fn swap_neighbours(self, a: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_permute_ps::<0b10_11_00_01>(a) }
    }

    #[inline(always)]
    fn reduce_add(self, a: __m512) -> f32 {
        // SAFETY: as above.
        unsafe { _mm512_reduce_add_ps(a) }
    }

    #[inline(always)]
    fn reduce_max(self, a: __m512) -> f32 {
        // SAFETY: as above.
        unsafe { _mm512_reduce_max_ps(a) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m512 {
        // SAFETY: `self` proves that the instruction exists; the caller promised the memory.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_first(self, from: *const f32, count: usize) -> __m512 {
        // SAFETY: as above; masked lanes are not accessed.
        unsafe { _mm512_maskz_loadu_ps(self.first(count), from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, a: __m512) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(to, a) }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, a: __m512, count: usize) {
        // SAFETY: as above.
        unsafe { _mm512_mask_storeu_ps(to, self.first(count), a) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> __m512 {
        // SAFETY: as above.
        unsafe { self.widen_bf16(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_first_bf16(self, from: *const u16, count: usize) -> __m512 {
        // SAFETY: as above.
        unsafe { self.widen_bf16(_mm256_maskz_loadu_epi16(self.first(count), from.cast())) }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16, a: __m512) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_si256(to.cast(), self.narrow_bf16(a)) }
    }

    #[inline(always)]
    unsafe fn store_first_bf16(self, to: *mut u16, a: __m512, count: usize) {
        // SAFETY: as above.
        unsafe { _mm256_mask_storeu_epi16(to.cast(), self.first(count), self.narrow_bf16(a)) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_first_f16(self, from: *const u16, count: usize) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(self.first(count), from.cast())) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16, a: __m512) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a)) }
    }

    #[inline(always)]
    unsafe fn store_first_f16(self, to: *mut u16, a: __m512, count: usize) {
        // SAFETY: as above.
        unsafe {
            let narrow = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a);
            _mm256_mask_storeu_epi16(to.cast(), self.first(count), narrow);
        }
    }

    #[inline(always)]
    fn transpose(self, tile: &mut [__m512; 16]) {
        // SAFETY: `self` proves that the instructions exist.
        unsafe {
            // Within each quarter of a vector: 4 × 4 blocks, by pairs and then by pairs of pairs.
            let mut quads = [_mm512_setzero_ps(); 16];
            for group in 0..4 {
                transpose_quads(&tile[4 * group..], &mut quads[4 * group..]);
            }
            // Then a 4 × 4 transpose of whole quarters.
            for column in 0..4 {
                let [a, b, c, d] = [quads[column], quads[column + 4], quads[column + 8], quads[column + 12]];
                let ab_even = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
                let ab_odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
                let cd_even = _mm512_shuffle_f32x4::<0b10_00_10_00>(c, d);
                let cd_odd = _mm512_shuffle_f32x4::<0b11_01_11_01>(c, d);
                tile[column] = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab_even, cd_even);
                tile[column + 4] = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab_odd, cd_odd);
                tile[column + 8] = _mm512_shuffle_f32x4::<0b11_01_11_01>(ab_even, cd_even);
                tile[column + 12] = _mm512_shuffle_f32x4::<0b11_01_11_01>(ab_odd, cd_odd);
            }
        }
    }

    #[inline(always)]
    unsafe fn load_two(self, low: *const f32, high: *const f32) -> __m512 {
        // SAFETY: the caller promised the memory; `self` proves that the instructions exist.
        unsafe {
            let low = _mm512_castps256_ps512(_mm256_loadu_ps(low));
            let high = _mm256_castps_pd(_mm256_loadu_ps(high));
            _mm512_castpd_ps(_mm512_insertf64x4::<1>(_mm512_castps_pd(low), high))
        }
    }

    #[inline(always)]
    fn transpose_pairs(self, tile: &mut [__m512; 16]) {
        // SAFETY: `self` proves that the instructions exist.
        unsafe {
            let mut quads = [_mm512_setzero_ps(); 8];
            for group in 0..2 {
                transpose_quads(&tile[4 * group..], &mut quads[4 * group..]);
            }
            // Quarters 0 and 2 belong to the column, 1 and 3 to the fourth after it.
            for column in 0..4 {
                let [upper, lower] = [quads[column], quads[column + 4]];
                tile[column] = _mm512_shuffle_f32x4::<0b10_00_10_00>(upper, lower);
                tile[column + 4] = _mm512_shuffle_f32x4::<0b11_01_11_01>(upper, lower);
            }
        }
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
        super::avx2::prefetch_to_write(address);
    }
}

/// The transpose of each 4 × 4 block that four vectors hold in a quarter.
///
/// # Safety
/// The machine has AVX-512F; both slices have four vectors.
#[inline(always)]
unsafe fn transpose_quads(from: &[__m512], to: &mut [__m512]) {
    // SAFETY: the caller's promise.
    unsafe {
        let ab_low = _mm512_castps_pd(_mm512_unpacklo_ps(from[0], from[1]));
        let ab_high = _mm512_castps_pd(_mm512_unpackhi_ps(from[0], from[1]));
        let cd_low = _mm512_castps_pd(_mm512_unpacklo_ps(from[2], from[3]));
        let cd_high = _mm512_castps_pd(_mm512_unpackhi_ps(from[2], from[3]));
        to[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low));
        to[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low));
        to[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high));
        to[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high));
    }
}
