//! The CPU implementation.

use candle_core::{Result, Tensor};

use crate::{
    output::Output,
    pool,
    simd::{Element, Simd, dispatch, for_vectors},
    view::{Floats, View, update},
};

/// Elements per task.
const TASK: usize = 32 * 1024;

pub(super) fn accumulate(into: &Tensor, x: &Tensor) -> Result<()> {
    let x = View::new(x);
    let x = x.floats("accumulate: `x`")?;
    update(into, "accumulate: `into`", |sum| {
        match x {
            Floats::F32(x) => add_all(sum, x),
            Floats::F16(x) => add_all(sum, x),
            Floats::Bf16(x) => add_all(sum, x),
        }
        Ok(())
    })
}

fn add_all<T: Element>(sum: &mut [f32], x: &[T]) {
    let (count, sum) = (sum.len(), Output::new(sum.as_mut_ptr()));
    pool::for_each(count.div_ceil(TASK), &|task| {
        let part = task * TASK..count.min((task + 1) * TASK);
        // SAFETY: both have `count` elements; the parts lie within and do not overlap.
        unsafe { add(sum.at(part.start), x[part.clone()].as_ptr(), part.len()) };
    });
}

dispatch! {
    unsafe fn add<T: Element>(sum: *mut f32, x: *const T, count: usize) = add_with;
}

/// # Safety
/// `count` elements are readable at `x` and writable at `sum`.
#[inline(always)]
unsafe fn add_with<S: Simd, T: Element>(simd: S, sum: *mut f32, x: *const T, count: usize) {
    for_vectors!(S, count, |column, lanes| {
        // SAFETY: the caller's promise.
        unsafe {
            let before = simd.load_first(sum.add(column), lanes);
            let after = simd.add(before, T::load_first(simd, x.add(column), lanes));
            simd.store_first(sum.add(column), after, lanes);
        }
    });
}
