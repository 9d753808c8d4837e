//! Walking along rows whose length is no multiple of the vector's.
//!
//! A macro, not a function with a closure: a closure's body would not be compiled for the instruction set.

use super::Simd;

/// Runs the body for each vector of a row, with the first column and the number of columns, which is `LANES`
/// (a constant to the compiler) for all but the last.
macro_rules! for_vectors {
    ($simd:ty, $width:expr, |$column:ident, $count:ident| $body:block) => {{
        let (width, lanes) = ($width, <$simd as $crate::simd::Simd>::LANES);
        let mut next = 0;
        while next + lanes <= width {
            let ($column, $count) = (next, lanes);
            $body
            next += lanes;
        }
        if next < width {
            let ($column, $count) = (next, width - next);
            $body
        }
    }};
}
pub(crate) use for_vectors;

/// Elements `column..column + count` of a row; the lanes behind them are zero.
#[inline(always)]
pub(crate) fn load<S: Simd>(simd: S, row: &[f32], column: usize, count: usize) -> S::Vector {
    let values = &row[column..column + count];
    // SAFETY: the slice has `count` elements.
    unsafe {
        if count == S::LANES { simd.load(values.as_ptr()) } else { simd.load_first(values.as_ptr(), count) }
    }
}

/// Writes elements `column..column + count` of a row.
#[inline(always)]
pub(crate) fn store<S: Simd>(simd: S, row: &mut [f32], column: usize, count: usize, values: S::Vector) {
    let to = &mut row[column..column + count];
    // SAFETY: the slice has `count` elements.
    unsafe {
        if count == S::LANES {
            simd.store(to.as_mut_ptr(), values);
        } else {
            simd.store_first(to.as_mut_ptr(), values, count);
        }
    }
}
