//! The CPU implementation.

use std::ops::Range;

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result, Tensor, bail};
use half::{bf16, f16};

use crate::{
    fresh::Fresh,
    output::{Output, filled},
    pool,
    simd::{Element, Simd, dispatch},
    view::{Floats, View},
};

/// Elements per task: a task's input and output together are within the second-level cache.
const TASK: usize = 32 * 1024;

pub(super) fn cast(x: &Tensor, dtype: DType, scale: f32) -> Result<Fresh> {
    let shape = x.shape();
    let x = View::new(x);
    let x = x.floats("cast: `x`")?;
    Ok(match dtype {
        DType::F32 => Fresh::from_vec(to::<f32>(x, scale), shape),
        DType::F16 => Fresh::from_vec(to::<f16>(x, scale), shape),
        DType::BF16 => Fresh::from_vec(to::<bf16>(x, scale), shape),
        other => bail!("cast: between f32, f16 and bf16, not {other:?}"),
    })
}

pub(super) fn scale_in_place(x: &Tensor, scale: f32) -> Result<()> {
    x.inplace_op1(&Scale(scale))
}

struct Scale(f32);

impl InplaceOp1 for Scale {
    fn name(&self) -> &'static str {
        "scale-in-place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let range = layout.start_offset()..layout.start_offset() + layout.shape().elem_count();
        match storage {
            CpuStorage::F32(x) => scale_all(&mut x[range], self.0),
            CpuStorage::F16(x) => scale_all(&mut x[range], self.0),
            CpuStorage::BF16(x) => scale_all(&mut x[range], self.0),
            _ => bail!("scale_in_place: for f32, f16 and bf16 only"),
        }
        Ok(())
    }
}

fn to<T: Element>(x: Floats<'_>, scale: f32) -> Vec<T> {
    match x {
        Floats::F32(x) => converted(x, scale),
        Floats::F16(x) => converted(x, scale),
        Floats::Bf16(x) => converted(x, scale),
    }
}

fn converted<From: Element, To: Element>(x: &[From], scale: f32) -> Vec<To> {
    let run = |output: Output<To>| {
        each_part(x.len(), &|part| {
            // SAFETY: the parts lie within both and do not overlap.
            unsafe { convert(x[part.clone()].as_ptr(), output.at(part.start), part.len(), scale) };
        });
    };
    // SAFETY: the parts cover all elements.
    unsafe { filled(x.len(), run) }
}

fn scale_all<T: Element>(x: &mut [T], scale: f32) {
    let (count, output) = (x.len(), Output::new(x.as_mut_ptr()));
    each_part(count, &|part| {
        // SAFETY: the parts lie within the slice and do not overlap.
        unsafe { convert(output.at(part.start).cast_const(), output.at(part.start), part.len(), scale) };
    });
}

/// Splits elements over the pool.
fn each_part(count: usize, run: &(dyn Fn(Range<usize>) + Sync)) {
    if count <= TASK {
        return run(0..count);
    }
    pool::for_each(count.div_ceil(TASK), &|task| run(task * TASK..count.min((task + 1) * TASK)));
}

dispatch! {
    unsafe fn convert<From: Element, To: Element>(
        x: *const From,
        y: *mut To,
        count: usize,
        scale: f32
    ) = convert_with;
}

/// # Safety
/// `count` elements are readable at `x` and writable at `y`, which may be the same place.
#[inline(always)]
unsafe fn convert_with<S: Simd, From: Element, To: Element>(
    simd: S,
    x: *const From,
    y: *mut To,
    count: usize,
    scale: f32,
) {
    let factor = simd.splat(scale);
    let whole = count - count % S::LANES;
    // SAFETY: the caller's promise.
    unsafe {
        for column in (0..whole).step_by(S::LANES) {
            To::store(simd, y.add(column), simd.mul(From::load(simd, x.add(column)), factor));
        }
        let rest = count - whole;
        if rest > 0 {
            let value = simd.mul(From::load_first(simd, x.add(whole), rest), factor);
            To::store_first(simd, y.add(whole), value, rest);
        }
    }
}
