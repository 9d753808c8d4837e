//! Matrix products on small matrices that stay in cache.
//!
//! Scalars of `a` times vectors of `b`: keys are read one number at a time and queries by vectors, then
//! softmax weights one at a time and values by vectors. So few rows need nothing rearranged.

use crate::{
    linear::microkernel::{self, Left},
    simd::Simd,
};

/// `c [rows, columns] (+)= a [rows, steps] · b [steps, columns]`
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub(super) a: Left,
    /// The first element, and floats from one row to the next.
    pub(super) b: (*const f32, usize),
    pub(super) c: (*mut f32, usize),
    pub(super) rows: usize,
    /// A multiple of the vector's lanes.
    pub(super) columns: usize,
    pub(super) steps: usize,
    /// Adds to `c` instead of overwriting it.
    pub(super) adds: bool,
}

/// The rows of a tile of one vector.
pub(super) const TILE: usize = 8;

/// # Safety
/// The matrices lie in readable (`c`: writable) memory, and `c` overlaps neither of the others.
#[inline(always)]
pub(super) unsafe fn multiply<S: Simd>(simd: S, product: &Product) {
    let mut column = 0;
    while column < product.columns {
        let vectors = (product.columns - column) / S::LANES;
        let vectors =
            if vectors >= 4 && product.rows <= 4 && S::REGISTERS >= 32 { 4 } else { vectors.min(2) };
        let highest = match vectors {
            4 => 4,
            2 => microkernel::tile_rows::<S>(),
            _ => TILE,
        };
        let tiles = product.rows.div_ceil(highest);
        let mut row = 0;
        for tile in 0..tiles {
            // Heights as equal as possible.
            let height = (product.rows - row).div_ceil(tiles - tile);
            // SAFETY: the tiles lie within `c`.
            unsafe { one_tile(simd, product, row, column, height, vectors) };
            row += height;
        }
        column += vectors * S::LANES;
    }
}

/// [`multiply`] for [`TILE`] rows of one vector and a multiple of 16 steps; meanwhile asks for `steps` numbers
/// at each address. One request per step: many at once would wait for each other, and the sums for them.
///
/// # Safety
/// As for [`multiply`]; any address is fine.
#[inline(always)]
pub(super) unsafe fn multiply_tile_ahead<S: Simd>(
    simd: S,
    product: &Product,
    addresses: [*const f32; 2 * TILE],
) {
    let Product { a, b, c, .. } = *product;
    let mut sums = [[simd.splat(0.); 1]; TILE];
    let mut step = 0;
    // SAFETY: the caller's promise.
    unsafe {
        for address in addresses {
            for line in 0..product.steps / (2 * TILE) {
                simd.prefetch(address.wrapping_add(16 * line));
                add_step(
                    simd,
                    a.start.add(step * a.step_stride),
                    a.row_stride,
                    b.0.add(step * b.1),
                    &mut sums,
                );
                step += 1;
            }
        }
        for (row, [sum]) in sums.into_iter().enumerate() {
            simd.store(c.0.add(row * c.1), sum);
        }
    }
}

/// # Safety
/// As for [`multiply`]; the tile lies within `c`.
#[inline(always)]
unsafe fn one_tile<S: Simd>(
    simd: S,
    product: &Product,
    row: usize,
    column: usize,
    height: usize,
    vectors: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let a = Left { start: product.a.start.add(row * product.a.row_stride), ..product.a };
        let b = (product.b.0.add(column), product.b.1);
        let c = (product.c.0.add(row * product.c.1 + column), product.c.1);
        let (steps, adds) = (product.steps, product.adds);
        match (vectors, height) {
            (2, _) => microkernel::multiply(simd, height, steps, a, b, c, adds),
            (4, 1) => low_tile::<S, 1, 4>(simd, steps, a, b, c, adds),
            (4, 2) => low_tile::<S, 2, 4>(simd, steps, a, b, c, adds),
            (4, 3) => low_tile::<S, 3, 4>(simd, steps, a, b, c, adds),
            (4, 4) => low_tile::<S, 4, 4>(simd, steps, a, b, c, adds),
            (1, 1) => low_tile::<S, 1, 1>(simd, steps, a, b, c, adds),
            (1, 2) => low_tile::<S, 2, 1>(simd, steps, a, b, c, adds),
            (1, 3) => low_tile::<S, 3, 1>(simd, steps, a, b, c, adds),
            (1, 4) => low_tile::<S, 4, 1>(simd, steps, a, b, c, adds),
            (1, 5) => low_tile::<S, 5, 1>(simd, steps, a, b, c, adds),
            (1, 6) => low_tile::<S, 6, 1>(simd, steps, a, b, c, adds),
            (1, 7) => low_tile::<S, 7, 1>(simd, steps, a, b, c, adds),
            (1, 8) => low_tile::<S, 8, 1>(simd, steps, a, b, c, adds),
            _ => unreachable!("`multiply` makes no such tile"),
        }
    }
}

/// A tile of one or four vectors, kept in registers; [`microkernel::multiply`] makes those of two.
///
/// # Safety
/// All elements are readable, those of `c` writable.
#[inline(always)]
unsafe fn low_tile<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    steps: usize,
    a: Left,
    b: (*const f32, usize),
    c: (*mut f32, usize),
    adds: bool,
) {
    let mut sums = [[simd.splat(0.); VECTORS]; ROWS];
    // SAFETY: the caller's promise.
    unsafe {
        if adds {
            for (row, sums) in sums.iter_mut().enumerate() {
                for (vector, sum) in sums.iter_mut().enumerate() {
                    *sum = simd.load(c.0.add(row * c.1 + vector * S::LANES));
                }
            }
        }
        for step in 0..steps {
            add_step(simd, a.start.add(step * a.step_stride), a.row_stride, b.0.add(step * b.1), &mut sums);
        }
        for (row, sums) in sums.into_iter().enumerate() {
            for (vector, sum) in sums.into_iter().enumerate() {
                simd.store(c.0.add(row * c.1 + vector * S::LANES), sum);
            }
        }
    }
}

/// Adds the outer product of a column of `a` and a row of `b`.
///
/// # Safety
/// As for [`low_tile`].
#[inline(always)]
unsafe fn add_step<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    a: *const f32,
    row_stride: usize,
    b: *const f32,
    sums: &mut [[S::Vector; VECTORS]; ROWS],
) {
    let mut columns = [simd.splat(0.); VECTORS];
    // SAFETY: the caller's promise.
    unsafe {
        for (vector, values) in columns.iter_mut().enumerate() {
            *values = simd.load(b.add(vector * S::LANES));
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            let factor = simd.splat(*a.add(row * row_stride));
            for (sum, values) in sums.iter_mut().zip(columns) {
                *sum = simd.fma(factor, values, *sum);
            }
        }
    }
}
