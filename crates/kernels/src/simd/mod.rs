//! Vectors of `f32`: one trait, an implementation per instruction set, chosen once at run time.
//!
//! A kernel is written once, as an `#[inline(always)]` function over `Simd`, and entered through a
//! function made by `dispatch!`, which compiles it for every instruction set. Everything that the kernel
//! calls with vectors must be `#[inline(always)]` too, and it must not pass vectors through closures: only
//! code inlined into the entry function is compiled with its instructions.
//!
//! The best level of the machine is used, unless the environment variable `METAL_CANDLE_SIMD` names another
//! (`amx`, `avx512`, `avx2`, `neon`, `portable`); a value that is unknown or that the machine lacks is a panic.

#![allow(dead_code, reason = "a complete and tested vocabulary; not every kernel set needs every word")]

mod element;
mod level;
mod loops;
pub(crate) mod math;
mod plain;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use element::Element;
pub use level::{Level, available, level, with_level};
pub(crate) use loops::{for_vectors, load, store};
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
pub use plain::{Pass, vectorized};
pub(crate) use portable::Portable;

pub(crate) use level::{forced_level, set_forced_level};

/// What [`Simd::apart`] compiles; its function is to be `#[inline(always)]`.
pub(crate) trait Work {
    fn run<S: Simd>(self, simd: S);
}

/// Operations on vectors of `f32`. A value of an implementing type is the proof that the machine has the
/// instructions, so arithmetic is safe; only memory access asks for care.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// A vector of [`Self::LANES`] floats.
    type Vector: Copy;

    /// Floats per vector; at most 16.
    const LANES: usize;

    /// Vectors that fit into registers, for kernels that size their tiles.
    const REGISTERS: usize;

    /// Does work in a function of its own. A loop that needs all registers gets them, whatever surrounds the call.
    fn apart(self, work: impl Work);

    /// All lanes the same.
    fn splat(self, value: f32) -> Self::Vector;
    /// `a + b`
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a - b`
    fn sub(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a · b`
    fn mul(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a / b`
    fn div(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a · b + c`, rounded once (twice in the portable version).
    fn fma(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// The larger; a NaN in `b` survives, a NaN in `a` need not.
    fn max(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// The smaller; a NaN in `b` survives, a NaN in `a` need not.
    fn min(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `|a|`
    fn abs(self, a: Self::Vector) -> Self::Vector;
    /// `√a`
    fn sqrt(self, a: Self::Vector) -> Self::Vector;
    /// To the nearest integer, ties to even. `|a| < 2²²`.
    fn round(self, a: Self::Vector) -> Self::Vector;
    /// `a · 2ⁿ` for integral `n` in `-252..=254`; rounded at most twice below the normal range.
    fn scale_by_power(self, a: Self::Vector, n: Self::Vector) -> Self::Vector;
    /// Per lane: `then` where `a < b`, else `otherwise`.
    fn select_less(
        self,
        a: Self::Vector,
        b: Self::Vector,
        then: Self::Vector,
        otherwise: Self::Vector,
    ) -> Self::Vector;
    /// A bit per lane, the first lane's lowest, set where `a < b` does not hold: larger, equal, or a NaN in either.
    fn not_less(self, a: Self::Vector, b: Self::Vector) -> u32;
    /// Lanes 2i and 2i + 1 change places.
    fn swap_neighbours(self, a: Self::Vector) -> Self::Vector;
    /// The sum of all lanes.
    fn reduce_add(self, a: Self::Vector) -> f32;
    /// The largest lane.
    fn reduce_max(self, a: Self::Vector) -> f32;

    /// Reads [`Self::LANES`] floats.
    ///
    /// # Safety
    /// They must be readable; no alignment is needed (as for all loads and stores here).
    unsafe fn load(self, from: *const f32) -> Self::Vector;
    /// Reads `count <= LANES` floats; the other lanes are zero and their memory is not touched.
    ///
    /// # Safety
    /// `count` floats must be readable.
    unsafe fn load_first(self, from: *const f32, count: usize) -> Self::Vector;
    /// Writes [`Self::LANES`] floats.
    ///
    /// # Safety
    /// They must be writable.
    unsafe fn store(self, to: *mut f32, a: Self::Vector);
    /// Writes the first `count <= LANES` lanes.
    ///
    /// # Safety
    /// `count` floats must be writable.
    unsafe fn store_first(self, to: *mut f32, a: Self::Vector, count: usize);

    /// Reads and widens [`Self::LANES`] bf16 numbers, given by their bits.
    ///
    /// # Safety
    /// They must be readable.
    unsafe fn load_bf16(self, from: *const u16) -> Self::Vector;
    /// Like [`Self::load_first`].
    ///
    /// # Safety
    /// `count` numbers must be readable.
    unsafe fn load_first_bf16(self, from: *const u16, count: usize) -> Self::Vector;
    /// Narrows to bf16, to nearest even.
    ///
    /// # Safety
    /// [`Self::LANES`] numbers must be writable.
    unsafe fn store_bf16(self, to: *mut u16, a: Self::Vector);
    /// Like [`Self::store_first`].
    ///
    /// # Safety
    /// `count` numbers must be writable.
    unsafe fn store_first_bf16(self, to: *mut u16, a: Self::Vector, count: usize);

    /// Reads and widens [`Self::LANES`] f16 numbers, given by their bits.
    ///
    /// # Safety
    /// They must be readable.
    unsafe fn load_f16(self, from: *const u16) -> Self::Vector;
    /// Like [`Self::load_first`].
    ///
    /// # Safety
    /// `count` numbers must be readable.
    unsafe fn load_first_f16(self, from: *const u16, count: usize) -> Self::Vector;
    /// Narrows to f16, to nearest even.
    ///
    /// # Safety
    /// [`Self::LANES`] numbers must be writable.
    unsafe fn store_f16(self, to: *mut u16, a: Self::Vector);
    /// Like [`Self::store_first`].
    ///
    /// # Safety
    /// `count` numbers must be writable.
    unsafe fn store_first_f16(self, to: *mut u16, a: Self::Vector, count: usize);

    /// Replaces `tile` by its transpose: `tile[i]` lane `j` becomes `tile[j]` lane `i`.
    /// The slice holds [`Self::LANES`] vectors.
    fn transpose(self, tile: &mut [Self::Vector; 16]);

    /// Reads half a vector from each address.
    ///
    /// # Safety
    /// Half of [`Self::LANES`] floats must be readable from each.
    unsafe fn load_two(self, low: *const f32, high: *const f32) -> Self::Vector;

    /// The transpose of rows of half a vector's length, two of them in each of the first half of the vectors: vector `i`
    /// holds rows [`paired_rows`]`(i)`, and then column `i` of all rows.
    fn transpose_pairs(self, tile: &mut [Self::Vector; 16]);

    /// Asks for the cache line at `address`; any address is fine.
    fn prefetch<T>(self, address: *const T);

    /// The same, but only as far as into the second-level cache.
    fn prefetch_outer<T>(self, address: *const T);

    /// Asks for the cache line at `address` to be written soon; any address is fine. A store to a line that is far away,
    /// or that another core has, otherwise waits for it, and the stores behind it wait too.
    fn prefetch_to_write<T>(self, address: *mut T);
}

/// The two rows that vector `index` holds in [`Simd::transpose_pairs`]: within every eight, a row and the fourth after it.
pub(crate) const fn paired_rows(index: usize) -> (usize, usize) {
    let first = index / 4 * 8 + index % 4;
    (first, first + 4)
}

/// Compiles a function with the instructions of [`Avx512`].
#[cfg(target_arch = "x86_64")]
macro_rules! with_avx512 {
    ($($function:tt)*) => {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
        $($function)*
    };
}
#[cfg(target_arch = "x86_64")]
pub(crate) use with_avx512;

/// Makes a function that runs a generic kernel at the current [`level`].
///
/// ```text
/// dispatch! {
///     /// Sums a slice.
///     fn sum(values: &[f32]) -> f32 = sum_with;
///     /// Kernels generic over an element type, and unsafe ones, work too.
///     unsafe fn dot<W: Element>(weights: *const W, count: usize) -> f32 = dot_with;
/// }
/// #[inline(always)]
/// fn sum_with<S: Simd>(simd: S, values: &[f32]) -> f32 { .. }
/// ```
macro_rules! dispatch {
    () => {};
    ($(#[$meta:meta])* $visibility:vis fn $name:ident $(<$($type:ident : $bound:path),+>)?
        ($($argument:ident : $kind:ty),* $(,)?) $(-> $result:ty)? = $kernel:path; $($rest:tt)*) => {
        $(#[$meta])*
        $visibility fn $name $(<$($type: $bound),+>)? ($($argument: $kind),*) $(-> $result)? {
            $crate::simd::dispatch!(@body [$($($type: $bound),+)?] ($($argument: $kind),*) ($(-> $result)?) $kernel)
        }
        $crate::simd::dispatch! { $($rest)* }
    };
    ($(#[$meta:meta])* $visibility:vis unsafe fn $name:ident $(<$($type:ident : $bound:path),+>)?
        ($($argument:ident : $kind:ty),* $(,)?) $(-> $result:ty)? = $kernel:path; $($rest:tt)*) => {
        $(#[$meta])*
        $visibility unsafe fn $name $(<$($type: $bound),+>)? ($($argument: $kind),*) $(-> $result)? {
            $crate::simd::dispatch!(@body [$($($type: $bound),+)?] ($($argument: $kind),*) ($(-> $result)?) $kernel)
        }
        $crate::simd::dispatch! { $($rest)* }
    };
    (@body [$($generics:tt)*] ($($argument:ident : $kind:ty),*) ($($result:tt)*) $kernel:path) => {{
        #[cfg(target_arch = "x86_64")]
        $crate::simd::with_avx512! {
            #[allow(clippy::too_many_arguments, unused_unsafe)]
            unsafe fn avx512<$($generics)*>($($argument: $kind),*) $($result)* {
                // SAFETY: the features are enabled here; the kernel's own conditions are the caller's.
                unsafe { $kernel($crate::simd::Avx512::assume(), $($argument),*) }
            }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        #[allow(clippy::too_many_arguments, unused_unsafe)]
        unsafe fn avx2<$($generics)*>($($argument: $kind),*) $($result)* {
            // SAFETY: as above.
            unsafe { $kernel($crate::simd::Avx2::assume(), $($argument),*) }
        }
        // SAFETY: `level` names a level only if the machine has its instructions; the kernel's own
        // conditions are the caller's.
        #[allow(unused_unsafe)]
        unsafe {
            match $crate::simd::level() {
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Level::Amx | $crate::simd::Level::Avx512 => avx512($($argument),*),
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Level::Avx2 => avx2($($argument),*),
                #[cfg(target_arch = "aarch64")]
                $crate::simd::Level::Neon => $kernel($crate::simd::Neon::assume(), $($argument),*),
                _ => $kernel($crate::simd::Portable, $($argument),*),
            }
        }
    }};
}
pub(crate) use dispatch;

#[cfg(test)]
mod tests;
