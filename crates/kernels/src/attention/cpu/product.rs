//! The two matrix products of attention, on small matrices that stay in cache.
//!
//! Both take scalars of `a` times vectors of `b`, so neither keys nor values are ever rearranged: keys and
//! softmax weights are read one number at a time, queries and values by vectors.

use crate::simd::Simd;

/// `c [rows, columns] = Σ_step a · b [steps, columns]`; strides count floats.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub(super) a: *const f32,
    pub(super) a_stride: usize,
    pub(super) b: *const f32,
    pub(super) b_stride: usize,
    pub(super) c: *mut f32,
    pub(super) c_stride: usize,
    pub(super) rows: usize,
    /// A multiple of the vector's lanes.
    pub(super) columns: usize,
    pub(super) steps: usize,
}

/// `c = a · b` with `a [rows, steps]`.
///
/// # Safety
/// The matrices lie in readable (`c`: writable) memory, and `c` overlaps neither of the others.
#[inline(always)]
pub(super) unsafe fn multiply<S: Simd>(simd: S, product: &Product) {
    // SAFETY: the caller's promise.
    unsafe { all_tiles::<S, false>(simd, product) }
}

/// `c += aᵀ · b` with `a [steps, rows]`.
///
/// # Safety
/// As for [`multiply`].
#[inline(always)]
pub(super) unsafe fn add_transposed<S: Simd>(simd: S, product: &Product) {
    // SAFETY: the caller's promise.
    unsafe { all_tiles::<S, true>(simd, product) }
}

/// Cuts `c` into tiles whose sums fit into registers.
#[inline(always)]
unsafe fn all_tiles<S: Simd, const TRANSPOSED: bool>(simd: S, product: &Product) {
    let mut column = 0;
    // SAFETY: the tiles lie within `c`.
    unsafe {
        while column < product.columns {
            let vectors = (product.columns - column) / S::LANES;
            if vectors >= 4 && product.rows <= 4 && S::REGISTERS >= 32 {
                rows_of_tiles::<S, TRANSPOSED, 4>(simd, product, column);
                column += 4 * S::LANES;
            } else if vectors >= 2 {
                rows_of_tiles::<S, TRANSPOSED, 2>(simd, product, column);
                column += 2 * S::LANES;
            } else {
                rows_of_tiles::<S, TRANSPOSED, 1>(simd, product, column);
                column += S::LANES;
            }
        }
    }
}

/// All tiles below one another, of heights as equal as possible.
#[inline(always)]
unsafe fn rows_of_tiles<S: Simd, const TRANSPOSED: bool, const VECTORS: usize>(
    simd: S,
    product: &Product,
    column: usize,
) {
    let highest = if VECTORS == 4 {
        4
    } else if S::REGISTERS >= 32 {
        8
    } else {
        6
    };
    let tiles = product.rows.div_ceil(highest);
    let mut row = 0;
    for tile in 0..tiles {
        let height = (product.rows - row).div_ceil(tiles - tile);
        // SAFETY: the caller's promise.
        unsafe {
            match height {
                1 => one_tile::<S, TRANSPOSED, 1, VECTORS>(simd, product, row, column),
                2 => one_tile::<S, TRANSPOSED, 2, VECTORS>(simd, product, row, column),
                3 => one_tile::<S, TRANSPOSED, 3, VECTORS>(simd, product, row, column),
                4 => one_tile::<S, TRANSPOSED, 4, VECTORS>(simd, product, row, column),
                5 if VECTORS < 4 => one_tile::<S, TRANSPOSED, 5, VECTORS>(simd, product, row, column),
                6 if VECTORS < 4 => one_tile::<S, TRANSPOSED, 6, VECTORS>(simd, product, row, column),
                7 if VECTORS < 4 => one_tile::<S, TRANSPOSED, 7, VECTORS>(simd, product, row, column),
                8 if VECTORS < 4 => one_tile::<S, TRANSPOSED, 8, VECTORS>(simd, product, row, column),
                _ => unreachable!("no tile is that high"),
            }
        }
        row += height;
    }
}

#[inline(always)]
unsafe fn one_tile<S: Simd, const TRANSPOSED: bool, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    product: &Product,
    row: usize,
    column: usize,
) {
    let (row_stride, step_stride) = if TRANSPOSED { (1, product.a_stride) } else { (product.a_stride, 1) };
    let mut sums = [[simd.splat(0.); VECTORS]; ROWS];
    // SAFETY: the caller's promise.
    unsafe {
        let a = product.a.add(row * row_stride);
        let b = product.b.add(column);
        let c = product.c.add(row * product.c_stride + column);
        if TRANSPOSED {
            for (row, sums) in sums.iter_mut().enumerate() {
                for (vector, sum) in sums.iter_mut().enumerate() {
                    *sum = simd.load(c.add(row * product.c_stride + vector * S::LANES));
                }
            }
        }
        for step in 0..product.steps {
            one_step(simd, a.add(step * step_stride), row_stride, b.add(step * product.b_stride), &mut sums);
        }
        for (row, sums) in sums.into_iter().enumerate() {
            for (vector, sum) in sums.into_iter().enumerate() {
                simd.store(c.add(row * product.c_stride + vector * S::LANES), sum);
            }
        }
    }
}

/// Adds the outer product of a column of `a` and a row of `b`.
#[inline(always)]
unsafe fn one_step<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    a: *const f32,
    row_stride: usize,
    b: *const f32,
    sums: &mut [[S::Vector; VECTORS]; ROWS],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut columns = [simd.splat(0.); VECTORS];
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
