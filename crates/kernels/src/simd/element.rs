//! The float types that weights come in.

use candle_core::WithDType;
use half::{bf16, f16};

use super::Simd;

/// A float that is widened when loaded into a vector and narrowed when stored.
pub(crate) trait Element: WithDType {
    /// Reads and widens `S::LANES` numbers.
    ///
    /// # Safety
    /// They must be readable.
    unsafe fn load<S: Simd>(simd: S, from: *const Self) -> S::Vector;

    /// Reads and widens half a vector from each address.
    ///
    /// # Safety
    /// Half of `S::LANES` numbers must be readable from each.
    #[inline(always)]
    unsafe fn load_two<S: Simd>(simd: S, low: *const Self, high: *const Self) -> S::Vector {
        let mut both = [std::mem::MaybeUninit::<Self>::uninit(); 16];
        let (to_low, to_high) = both.split_at_mut(S::LANES / 2);
        // SAFETY: the caller promised the memory; a vector has 16 lanes at most, and so many were written.
        unsafe {
            std::ptr::copy_nonoverlapping(low, to_low.as_mut_ptr().cast(), S::LANES / 2);
            std::ptr::copy_nonoverlapping(high, to_high.as_mut_ptr().cast(), S::LANES / 2);
            Self::load(simd, both.as_ptr().cast())
        }
    }

    /// Reads and widens `count <= S::LANES` numbers; the other lanes are zero.
    ///
    /// # Safety
    /// `count` numbers must be readable.
    unsafe fn load_first<S: Simd>(simd: S, from: *const Self, count: usize) -> S::Vector;

    /// Narrows (to nearest even) and writes `S::LANES` numbers.
    ///
    /// # Safety
    /// They must be writable.
    unsafe fn store<S: Simd>(simd: S, to: *mut Self, a: S::Vector);

    /// Narrows and writes the first `count <= S::LANES` lanes.
    ///
    /// # Safety
    /// `count` numbers must be writable.
    unsafe fn store_first<S: Simd>(simd: S, to: *mut Self, a: S::Vector, count: usize);

    /// Widens one number.
    fn widen(self) -> f32;
}

/// Forwards each method to the one of [`Simd`] for the type's bits.
macro_rules! element {
    ($type:ty, $bits:ty, $load:ident, $load_first:ident, $store:ident, $store_first:ident $(, $load_two:ident)?) => {
        impl Element for $type {
            $(
                #[inline(always)]
                unsafe fn load_two<S: Simd>(simd: S, low: *const Self, high: *const Self) -> S::Vector {
                    // SAFETY: the caller's promise.
                    unsafe { simd.$load_two(low, high) }
                }
            )?
            #[inline(always)]
            unsafe fn load<S: Simd>(simd: S, from: *const Self) -> S::Vector {
                // SAFETY: the caller's promise; the types have the same layout.
                unsafe { simd.$load(from.cast::<$bits>()) }
            }
            #[inline(always)]
            unsafe fn load_first<S: Simd>(simd: S, from: *const Self, count: usize) -> S::Vector {
                // SAFETY: as above.
                unsafe { simd.$load_first(from.cast::<$bits>(), count) }
            }
            #[inline(always)]
            unsafe fn store<S: Simd>(simd: S, to: *mut Self, a: S::Vector) {
                // SAFETY: as above.
                unsafe { simd.$store(to.cast::<$bits>(), a) }
            }
            #[inline(always)]
            unsafe fn store_first<S: Simd>(simd: S, to: *mut Self, a: S::Vector, count: usize) {
                // SAFETY: as above.
                unsafe { simd.$store_first(to.cast::<$bits>(), a, count) }
            }
            #[inline(always)]
            fn widen(self) -> f32 {
                f32::from(self)
            }
        }
    };
}

element!(f32, f32, load, load_first, store, store_first, load_two);
element!(bf16, u16, load_bf16, load_first_bf16, store_bf16, store_first_bf16);
element!(f16, u16, load_f16, load_first_f16, store_f16, store_first_f16);
