//! Products of matrices in the tile registers of AMX, beside the vectors of AVX-512.
//!
//! The unit multiplies bf16 numbers and adds up in `f32`. An `f32` is the sum of three of bf16, an `f16` of two ([`split`]): with
//! the products of these parts, but for those too small to matter, `x · weights` is as exact as with vectors of `f32`, and the
//! sooner done the fewer parts weights have: three products of parts for bf16, six for `f32`, where vectors would take the time of
//! sixteen.

use std::arch::{asm, x86_64::*};

use super::Avx512;

/// Rows of a register, and 32-bit numbers in each row.
pub(crate) const SIDE: usize = 16;

/// Steps of a register: pairs of bf16 numbers.
pub(crate) const STEPS: usize = 2 * SIDE;

/// Rows and columns of a tile of sums: two registers each.
pub(crate) const TILE: usize = 2 * SIDE;

/// Floats that a register holds.
pub(crate) const REGISTER: usize = SIDE * SIDE;

/// The parts of an `f32`.
pub(crate) const PARTS: usize = 3;

/// Whether the processor has the instructions and the system lends the registers to this process. The first call asks for
/// them, once for all threads.
pub(crate) fn is_available() -> bool {
    #[cfg(target_os = "linux")]
    {
        use std::sync::OnceLock;

        const REQUEST: libc::c_long = 0x1023;
        const TILE_DATA: libc::c_long = 18;
        static AVAILABLE: OnceLock<bool> = OnceLock::new();
        *AVAILABLE.get_or_init(|| {
            let features = __cpuid_count(7, 0).edx;
            let (has_bf16, has_tiles) = (features >> 22 & 1 == 1, features >> 24 & 1 == 1);
            // SAFETY: the request changes nothing but what this process may use.
            has_bf16 && has_tiles && unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) } == 0
        })
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// Tile registers of this thread that are set up, all of them 16 rows of 64 bytes, until the value is dropped.
#[derive(Debug)]
pub(crate) struct Registers(Avx512);

#[repr(C, align(64))]
struct Layout {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Registers {
    /// # Safety
    /// They must be available, and so must AVX-512.
    pub(crate) unsafe fn set_up() -> Self {
        let mut layout =
            Layout { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        layout.row_bytes[..8].fill(64);
        layout.rows[..8].fill(16);
        // SAFETY: the caller's promise; the instruction reads 64 bytes.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &layout, options(nostack, readonly));
            Self(Avx512::assume())
        }
    }

    /// The vectors that are there beside them.
    #[inline(always)]
    pub(crate) fn vectors(&self) -> Avx512 {
        self.0
    }

    /// Multiplies.
    ///
    /// # Safety
    /// All that the product describes must be readable, the sums writable.
    #[inline(always)]
    pub(crate) unsafe fn multiply(&self, product: &Product) {
        let Product { rows, sums: (sums, stride), adds, .. } = *product;
        if rows == TILE {
            // SAFETY: the caller's promise; the registers are set up.
            return unsafe { multiply_whole(product) };
        }
        let mut whole = [0f32; TILE * TILE];
        // SAFETY: the same, and the whole tile has all rows.
        unsafe {
            for (row, line) in whole.chunks_exact_mut(TILE).enumerate().take(if adds { rows } else { 0 }) {
                sums.add(row * stride).copy_to_nonoverlapping(line.as_mut_ptr(), TILE);
            }
            multiply_whole(&Product { rows: TILE, sums: (whole.as_mut_ptr(), TILE), ..*product });
            for (row, line) in whole.chunks_exact(TILE).enumerate().take(rows) {
                sums.add(row * stride).copy_from_nonoverlapping(line.as_ptr(), TILE);
            }
        }
    }
}

/// Makes functions that run with the instructions of AMX and AVX-512, as [`dispatch`](super::dispatch) does with those of each
/// level. Their kernels get the [`Registers`] first.
macro_rules! enter {
    ($($(#[$meta:meta])* $visibility:vis fn $name:ident($($argument:ident: $kind:ty),+ $(,)?) = $kernel:path;)+) => {$(
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $visibility fn $name($($argument: $kind),+) {
            $crate::simd::with_avx512! {
                unsafe fn with_features(registers: &$crate::simd::amx::Registers, $($argument: $kind),+) {
                    $kernel(registers, $($argument),+);
                }
            }
            assert_eq!($crate::simd::level(), $crate::simd::Level::Amx);
            // SAFETY: the level is in use, so there are the instructions.
            unsafe { with_features(&$crate::simd::amx::Registers::set_up(), $($argument),+) }
        }
    )+};
}
pub(crate) use enter;

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: a value exists only where the instruction does.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// `sums [rows, 32] (+)= x [rows, steps] · panel [steps, 32]`
#[derive(Clone, Copy)]
pub(crate) struct Product {
    /// At most [`TILE`]. Of the sums, no other rows are touched.
    pub(crate) rows: usize,
    /// Per group of [`STEPS`] steps: the three parts, the largest first, of 16 rows and the other 16 by turns, a register
    /// each.
    pub(crate) x: *const f32,
    /// The same for columns, with as many parts as they have.
    pub(crate) panel: *const f32,
    /// Parts of the panel.
    pub(crate) parts: usize,
    pub(crate) groups: usize,
    /// With their stride.
    pub(crate) sums: (*mut f32, usize),
    pub(crate) adds: bool,
    /// Where to fetch for the second-level cache, and how many lines with each group.
    pub(crate) ahead: (*const f32, usize),
}

/// A loop over groups of [`STEPS`] steps. Of each, parts are loaded by turns, and multiplied with what has stayed in the other
/// registers. The number says how many bytes a group of columns takes.
macro_rules! products {
    ($product:expr, $panel_bytes:literal, $([$($operand:ident $part:literal),+]),+) => {{
        let &Product { x, panel, groups, sums: (sums, stride), adds, ahead: (line, lines), .. } = $product;
        asm!(
            "test {adds}, {adds}",
            "jz 2f",
            "tileloadd tmm0, [{top} + {stride}]",
            "tileloadd tmm1, [{top} + {stride} + 64]",
            "tileloadd tmm2, [{bottom} + {stride}]",
            "tileloadd tmm3, [{bottom} + {stride} + 64]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "3:",
            "test {groups}, {groups}",
            "jz 7f",
            "4:",
            "mov {count}, {lines}",
            "test {count}, {count}",
            "jz 6f",
            "5:",
            "prefetcht1 [{line}]",
            "add {line}, 64",
            "dec {count}",
            "jnz 5b",
            "6:",
            $(
                $(load!($operand $part),)+
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                $(fetch!($operand $part),)+
            )+
            "add {x}, 6144",
            concat!("add {panel}, ", $panel_bytes),
            "dec {groups}",
            "jnz 4b",
            "7:",
            "tilestored [{top} + {stride}], tmm0",
            "tilestored [{top} + {stride} + 64], tmm1",
            "tilestored [{bottom} + {stride}], tmm2",
            "tilestored [{bottom} + {stride} + 64], tmm3",
            adds = in(reg) usize::from(adds),
            x = inout(reg) x => _,
            panel = inout(reg) panel => _,
            top = in(reg) sums,
            bottom = in(reg) sums.wrapping_add(SIDE * stride),
            stride = in(reg) stride * size_of::<f32>(),
            row = in(reg) 64usize,
            groups = inout(reg) groups => _,
            line = inout(reg) line => _,
            lines = in(reg) lines,
            count = out(reg) _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack)
        );
    }};
}

/// Loads both registers of a part.
macro_rules! load {
    (x $part:literal) => {
        concat!(
            "tileloadd tmm4, [{x} + {row} + 2048 * ",
            $part,
            "]\n",
            "tileloadd tmm5, [{x} + {row} + 2048 * ",
            $part,
            " + 1024]"
        )
    };
    (panel $part:literal) => {
        concat!(
            "tileloadd tmm6, [{panel} + {row} + 2048 * ",
            $part,
            "]\n",
            "tileloadd tmm7, [{panel} + {row} + 2048 * ",
            $part,
            " + 1024]"
        )
    };
}

/// Fetches a part of `x` for the next group: each tile reads as many lines of it as of weights, or three times as many.
macro_rules! fetch {
    (x $part:literal) => {
        concat!(
            ".irp line, 0, 64, 128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960\n",
            "prefetcht0 [{x} + 6144 + 2048 * ",
            $part,
            " + \\line]\n",
            "prefetcht0 [{x} + 6144 + 2048 * ",
            $part,
            " + 1024 + \\line]\n",
            ".endr"
        )
    };
    (panel $part:literal) => {
        ""
    };
}

/// Multiplies a block with all rows.
///
/// # Safety
/// Registers must be set up, all that the product describes readable, and the sums writable.
#[inline(always)]
unsafe fn multiply_whole(product: &Product) {
    // SAFETY: the caller's promise.
    unsafe {
        match product.parts {
            1 => products!(product, 2048, [panel 0, x 2], [x 1], [x 0]),
            2 => products!(product, 4096, [panel 0, x 2], [x 1], [panel 1], [x 0], [panel 0]),
            _ => products!(product, 6144, [panel 0, x 2], [x 1], [panel 1], [x 0], [panel 2], [panel 0]),
        }
    }
}

/// Pairs of bf16 numbers, the first in the lower half, whose sums are the lanes of two vectors: exactly in three parts, as
/// nearly as can be in fewer. What is not finite stays so, as a NaN if there are more parts than one, and so becomes what rounds to
/// an infinity; what is below the normal range counts as zero in products.
#[inline(always)]
pub(crate) fn split<const COUNT: usize>(_: Avx512, mut first: __m512, mut second: __m512) -> [__m512; COUNT] {
    // SAFETY: the proof that the instructions exist was given.
    unsafe {
        let upper = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
        let half = _mm512_set1_epi32(0x8000);
        let mut parts = [_mm512_setzero_ps(); COUNT];
        for (index, part) in parts.iter_mut().enumerate() {
            let [mut low, mut high] = [first, second].map(|numbers| _mm512_castps_si512(numbers));
            if index + 1 < COUNT {
                // To the nearest, so that what remains is small.
                low = _mm512_add_epi32(low, half);
                high = _mm512_add_epi32(high, half);
                let rounded = [low, high].map(|bits| _mm512_castsi512_ps(_mm512_and_si512(bits, upper)));
                first = _mm512_sub_ps(first, rounded[0]);
                second = _mm512_sub_ps(second, rounded[1]);
            }
            // `upper` of the one, the rest of the other.
            let pair = _mm512_ternarylogic_epi32::<0xca>(upper, high, _mm512_srli_epi32::<16>(low));
            *part = _mm512_castsi512_ps(pair);
        }
        parts
    }
}
