//! The innermost loops of matrix multiplication, also used by attention.
//!
//! [`multiply`] keeps a tile of the result in registers: up to [`tile_rows`] rows by two vectors. Its right
//! operand is read along rows, two vectors at a time; [`pack`] brings rows of weights into that form. Its left
//! operand is read number by number, by step ([`Packed`]), along its rows ([`Rows`]) or as it lies ([`Left`]).

use std::mem::MaybeUninit;

use crate::simd::{Element, Simd, Work, dispatch, paired_rows};

/// How many steps ahead of its use the left operand is fetched: packed, its rows lie side by side.
const AHEAD: usize = 40;

/// Floats per cache line.
pub(crate) const CACHE_LINE: usize = 16;

/// The most rows that [`multiply`] takes.
pub(crate) const fn tile_rows<S: Simd>() -> usize {
    if S::REGISTERS >= 32 { 14 } else { 6 }
}

/// Columns of a tile.
pub(crate) const fn tile_columns<S: Simd>() -> usize {
    2 * S::LANES
}

dispatch! {
    /// The most rows and the columns of a tile, at the level in use.
    pub(crate) fn tile() -> (usize, usize) = tile_with;
}

#[inline(always)]
fn tile_with<S: Simd>(_: S) -> (usize, usize) {
    (tile_rows::<S>(), tile_columns::<S>())
}

/// The left operand of a tile, at one of its steps.
pub(crate) trait Factors: Copy {
    /// The factor of a row.
    ///
    /// # Safety
    /// It must be readable.
    unsafe fn of(&self, row: usize) -> f32;

    /// Goes on to the next step.
    fn step(&mut self);

    /// Fetches what comes soon, unless the hardware does so by itself.
    fn fetch<S: Simd>(&self, simd: S);
}

/// A matrix in memory: element `(row, step)` is at `start + row · row_stride + step · step_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    pub(crate) start: *const f32,
    pub(crate) row_stride: usize,
    pub(crate) step_stride: usize,
}

impl Factors for Left {
    #[inline(always)]
    unsafe fn of(&self, row: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *self.start.add(row * self.row_stride) }
    }

    #[inline(always)]
    fn step(&mut self) {
        self.start = self.start.wrapping_add(self.step_stride);
    }

    #[inline(always)]
    fn fetch<S: Simd>(&self, simd: S) {
        simd.prefetch(self.start.wrapping_add(AHEAD * self.step_stride));
    }
}

/// Rows that lie side by side, step by step.
#[derive(Clone, Copy)]
pub(crate) struct Packed {
    pub(crate) start: *const f32,
    pub(crate) rows: usize,
}

impl Factors for Packed {
    #[inline(always)]
    unsafe fn of(&self, row: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { *self.start.add(row) }
    }

    #[inline(always)]
    fn step(&mut self) {
        self.start = self.start.wrapping_add(self.rows);
    }

    #[inline(always)]
    fn fetch<S: Simd>(&self, simd: S) {
        simd.prefetch(self.start.wrapping_add(AHEAD * self.rows));
    }
}

/// Rows that are read along their length.
///
/// A pointer to each row is more than the registers hold. From two pointers, [`Rows::HALF`] rows apart, every row is a
/// small multiple of the stride away, of which an x86 address takes one, two, four or eight.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    first: *const f32,
    middle: *const f32,
    /// Three and five strides, in bytes as the stride is.
    stride: usize,
    three: usize,
    five: usize,
}

impl Rows {
    const HALF: usize = 7;

    #[inline(always)]
    pub(crate) fn new(start: *const f32, stride: usize) -> Self {
        let bytes = stride * size_of::<f32>();
        Self {
            first: start,
            middle: start.wrapping_add(Self::HALF * stride),
            stride: bytes,
            three: 3 * bytes,
            five: 5 * bytes,
        }
    }
}

impl Factors for Rows {
    #[inline(always)]
    unsafe fn of(&self, row: usize) -> f32 {
        let start = if row < Self::HALF { self.first } else { self.middle };
        let offset = match row % Self::HALF {
            3 => self.three,
            5 => self.five,
            6 => 2 * self.three,
            row => row * self.stride,
        };
        // SAFETY: the caller's promise.
        unsafe { *start.wrapping_byte_add(offset) }
    }

    #[inline(always)]
    fn step(&mut self) {
        self.first = opaque(self.first.wrapping_add(1));
        self.middle = opaque(self.middle.wrapping_add(1));
    }

    #[inline(always)]
    fn fetch<S: Simd>(&self, _: S) {}
}

/// The same address, in a way that the compiler cannot follow: else it makes a pointer of its own for each sum that is
/// formed with it.
#[inline(always)]
#[allow(
    clippy::pointers_in_nomem_asm_block,
    reason = "nothing is read or written, the address is only hidden"
)]
fn opaque(address: *const f32) -> *const f32 {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    {
        let mut address = address;
        // SAFETY: no instruction at all.
        unsafe {
            std::arch::asm!("/* {0} */", inout(reg) address, options(pure, nomem, nostack, preserves_flags));
        }
        address
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    address
}

/// Cache lines that are fetched into the second-level cache while a tile is made: one each two steps.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    start: *const f32,
    /// Bytes to the next line.
    stride: usize,
    lines: usize,
}

impl Ahead {
    pub(crate) const NOTHING: Self = Self { start: std::ptr::null(), stride: 0, lines: 0 };

    /// Where it starts, and how many lines fall to each of so many `rounds`, if they lie side by side.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn in_rounds(&self, rounds: usize) -> (*const f32, usize) {
        (self.start, self.lines.div_ceil(rounds.max(1)))
    }

    /// A line of each of `count` rows, `stride` numbers apart.
    #[inline(always)]
    pub(crate) fn rows(start: *const f32, stride: usize, count: usize) -> Self {
        Self { start, stride: size_of::<f32>() * stride, lines: count }
    }

    /// The share of tile `index` of `tiles` in `count` numbers.
    #[inline(always)]
    pub(crate) fn share(start: *const f32, count: usize, (index, tiles): (usize, usize)) -> Self {
        let lines = count.div_ceil(CACHE_LINE * tiles);
        Self {
            start: start.wrapping_add(index * lines * CACHE_LINE),
            stride: size_of::<f32>() * CACHE_LINE,
            lines,
        }
    }
}

/// What is made of the factors: `c[row][column] (+)= Σ a[row][step] · b[step][column]`.
#[derive(Clone, Copy)]
pub(crate) struct Tile<'a> {
    /// At most [`tile_rows`].
    pub(crate) rows: usize,
    /// Vectors of columns, one or two.
    pub(crate) vectors: usize,
    pub(crate) depth: usize,
    /// Row-major, with its stride.
    pub(crate) b: (*const f32, usize),
    /// Row-major, with its stride.
    pub(crate) c: (*mut f32, usize),
    /// Whether to add to `c`, else it is overwritten.
    pub(crate) adds: bool,
    /// What will be multiplied next.
    pub(crate) ahead: &'a [Ahead],
}

/// Evaluates an expression with a number of rows, at most [`tile_rows`], as a constant.
macro_rules! with_rows {
    ($simd:ty, $rows:expr, $constant:ident => $body:expr) => {
        if <$simd>::REGISTERS >= 32 {
            with_rows!(@match $rows, $constant => $body, 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
        } else {
            with_rows!(@match $rows, $constant => $body, 1 2 3 4 5 6)
        }
    };
    (@match $rows:expr, $constant:ident => $body:expr, $($value:literal)+) => {
        match $rows {
            $($value => {
                const $constant: usize = $value;
                $body
            })+
            rows => debug_assert!(rows == 0),
        }
    };
}

/// `c[row][column] (+)= Σ a[row][step] · b[step][column]` for `rows` rows, [`tile_columns`] columns and
/// `depth` steps. `b` and `c` are row-major with the given strides. Adds to `c` if `adds`, else overwrites.
///
/// # Safety
/// All elements so described must be readable, those of `c` writable; `rows <= tile_rows()`.
#[inline(always)]
pub(crate) unsafe fn multiply<S: Simd>(
    simd: S,
    rows: usize,
    depth: usize,
    a: Left,
    b: (*const f32, usize),
    c: (*mut f32, usize),
    adds: bool,
) {
    let tile = Tile { rows, vectors: 2, depth, b, c, adds, ahead: &[] };
    // SAFETY: the caller's promises.
    with_rows!(S, rows, ROWS => unsafe { multiply_rows::<S, ROWS, 2>(simd, a, &tile) });
}

/// Makes a tile, and fetches what will be multiplied next. Each size is a function of its own: among much other code, the
/// compiler finds no registers for the largest.
///
/// # Safety
/// All elements that the tile describes must be readable, those of `c` writable.
#[inline(always)]
pub(crate) unsafe fn multiply_ahead<S: Simd>(simd: S, a: impl Factors, tile: &Tile<'_>) {
    with_rows!(S, tile.rows, ROWS => match tile.vectors {
        1 => simd.apart(Multiplication::<_, ROWS, 1> { a, tile }),
        _ => simd.apart(Multiplication::<_, ROWS, 2> { a, tile }),
    });
}

/// A tile whose caller has promised what [`multiply_ahead`] asks for.
struct Multiplication<'a, A, const ROWS: usize, const VECTORS: usize> {
    a: A,
    tile: &'a Tile<'a>,
}

impl<A: Factors, const ROWS: usize, const VECTORS: usize> Work for Multiplication<'_, A, ROWS, VECTORS> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // SAFETY: promised.
        unsafe { multiply_rows::<S, ROWS, VECTORS>(simd, self.a, self.tile) }
    }
}

/// # Safety
/// As for [`multiply_ahead`].
#[inline(always)]
unsafe fn multiply_rows<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    mut a: impl Factors,
    tile: &Tile<'_>,
) {
    let Tile { depth, b: (mut b, b_stride), c: (c, c_stride), adds, ahead, .. } = *tile;
    let zero = simd.splat(0.0);
    let mut sums = [[zero; VECTORS]; ROWS];
    // What `c` holds may be on its way, and is added in the end.
    let fetches = !ahead.is_empty();
    // SAFETY: the caller promised the memory of all operands.
    unsafe {
        if adds && !fetches {
            for (row, sums) in sums.iter_mut().enumerate() {
                let c = c.add(row * c_stride);
                for (vector, sum) in sums.iter_mut().enumerate() {
                    *sum = simd.load(c.add(vector * S::LANES));
                }
            }
        }
        let (mut pairs, mut ahead, at_hand) = (depth / 2, ahead.iter(), b);
        loop {
            let next = ahead.next();
            let Ahead { start: mut line, stride, lines } =
                *next.unwrap_or(&Ahead { start: at_hand, stride: 0, lines: pairs });
            let lines = lines.min(pairs);
            for _ in 0..lines {
                if fetches {
                    simd.prefetch_outer(line);
                    line = line.wrapping_byte_add(stride);
                }
                // Twice: the compiler does not always unroll a loop around so much.
                add_step(simd, &mut sums, &mut a, &mut b, b_stride);
                add_step(simd, &mut sums, &mut a, &mut b, b_stride);
            }
            pairs -= lines;
            if next.is_none() {
                break;
            }
        }
        if depth % 2 == 1 {
            add_step(simd, &mut sums, &mut a, &mut b, b_stride);
        }
        for (row, sums) in sums.iter().enumerate() {
            let c = c.add(row * c_stride);
            for (vector, &sum) in sums.iter().enumerate() {
                let c = c.add(vector * S::LANES);
                simd.store(c, if adds && fetches { simd.add(sum, simd.load(c)) } else { sum });
            }
        }
    }
}

/// Adds one step of both operands to a tile, and goes on to the next.
///
/// # Safety
/// The factors of all rows must be readable, and `VECTORS` vectors from `b` on.
#[inline(always)]
unsafe fn add_step<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    sums: &mut [[S::Vector; VECTORS]; ROWS],
    a: &mut impl Factors,
    b: &mut *const f32,
    b_stride: usize,
) {
    a.fetch(simd);
    let mut right = [simd.splat(0.0); VECTORS];
    // SAFETY: the caller's promise.
    unsafe {
        for (vector, right) in right.iter_mut().enumerate() {
            *right = simd.load(b.add(vector * S::LANES));
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            let factor = simd.splat(a.of(row));
            for (sum, &right) in sums.iter_mut().zip(&right) {
                *sum = simd.fma(factor, right, *sum);
            }
        }
    }
    a.step();
    *b = b.wrapping_add(b_stride);
}

/// Writes rows as columns, widened: `to[step · stride + row] = from[row · row_stride + step]` for `depth`
/// steps of `rows <= LANES` rows. Whatever follows a column, up to `LANES` numbers, is overwritten, but
/// nothing beyond `to[depth · stride]` is.
///
/// # Safety
/// `depth` numbers of each row must be readable, and `depth · stride` numbers writable; `rows <= stride`.
#[inline(always)]
pub(crate) unsafe fn pack<S: Simd, W: Element>(
    simd: S,
    from: *const W,
    row_stride: usize,
    rows: usize,
    depth: usize,
    to: *mut f32,
    stride: usize,
) {
    let zero = simd.splat(0.0);
    let mut step = 0;
    while step < depth {
        let count = S::LANES.min(depth - step);
        let mut tile = [zero; 16];
        // SAFETY: `count` steps remain in each row. A whole vector fits where `LANES` numbers remain.
        unsafe {
            if count == S::LANES {
                for (row, vector) in tile.iter_mut().enumerate().take(S::LANES) {
                    if row < rows {
                        let from = from.wrapping_add(row * row_stride + step);
                        // Many short rows at once are more than the hardware fetches ahead by itself.
                        simd.prefetch(from.wrapping_add(4 * S::LANES));
                        *vector = W::load(simd, from);
                    }
                }
                simd.transpose(&mut tile);
            } else if count == S::LANES / 2 {
                // Half as many vectors, in about a third of the time.
                let nothing = [const { MaybeUninit::<W>::zeroed() }; 16];
                let place = |row: usize| match row < rows {
                    true => from.wrapping_add(row * row_stride + step),
                    false => nothing.as_ptr().cast(),
                };
                for (index, vector) in tile.iter_mut().enumerate().take(S::LANES / 2) {
                    let (low, high) = paired_rows(index);
                    *vector = W::load_two(simd, place(low), place(high));
                }
                simd.transpose_pairs(&mut tile);
            } else {
                for (row, vector) in tile.iter_mut().enumerate().take(rows) {
                    *vector = W::load_first(simd, from.wrapping_add(row * row_stride + step), count);
                }
                simd.transpose(&mut tile);
            }
            let to = to.add(step * stride);
            if count == S::LANES && (depth - step - S::LANES + 1) * stride >= S::LANES {
                for (column, &vector) in tile.iter().enumerate().take(S::LANES) {
                    simd.store(to.add(column * stride), vector);
                }
            } else {
                for (column, &vector) in tile.iter().enumerate().take(count) {
                    let room = (depth - step - column) * stride;
                    let to = to.add(column * stride);
                    if room < S::LANES { simd.store_first(to, vector, room) } else { simd.store(to, vector) }
                }
            }
        }
        step += count;
    }
}
