//! The CPU implementation: each row's cosines and sines stay in cache while all its heads turn.

use std::ops::Range;

use candle_core::{Device, Result, Tensor};

use super::Rotation;
use crate::{
    output::{Output, filled},
    pool,
    simd::{Simd, dispatch},
    view::View,
};

/// Elements per task: enough to outweigh handing it to another thread.
const TASK: usize = 16 * 1024;

struct Job<'a> {
    heads: usize,
    head_dim: usize,
    /// Half of the rotated elements of a head.
    half: usize,
    x: &'a [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    output: Output<f32>,
}

pub(super) fn rope(x: &Tensor, rotation: &Rotation) -> Result<Tensor> {
    let (rows, heads, head_dim) = x.dims3()?;
    let (_rows, half) = rotation.cos.dims2()?;
    let [elements, cos, sin] = [x, &rotation.cos, &rotation.sin].map(View::new);
    let elements = elements.f32s("rope: `x`")?;
    let (cos, sin) = (cos.f32s("rope: `cos`")?, sin.f32s("rope: `sin`")?);
    let rows_per_task = (TASK / (heads * head_dim).max(1)).max(1);
    let tasks = rows.div_ceil(rows_per_task);
    let run = |output| {
        let job = Job { heads, head_dim, half, x: elements, cos, sin, output };
        if tasks <= 2 {
            return rotate_rows(&job, 0..rows);
        }
        pool::for_each(tasks, &|task| {
            let first = task * rows_per_task;
            rotate_rows(&job, first..rows.min(first + rows_per_task));
        });
    };
    // SAFETY: `rotate_rows` writes every element of every row.
    let output = unsafe { filled(elements.len(), run) };
    Tensor::from_vec(output, x.shape(), &Device::Cpu)
}

dispatch! {
    fn rotate_rows(job: &Job<'_>, rows: Range<usize>) = rotate_rows_with;
}

#[inline(always)]
fn rotate_rows_with<S: Simd>(simd: S, job: &Job<'_>, rows: Range<usize>) {
    for row in rows {
        let turn = row * job.half..(row + 1) * job.half;
        let (cos, sin) = (job.cos[turn.clone()].as_ptr(), job.sin[turn].as_ptr());
        for head in row * job.heads..(row + 1) * job.heads {
            let start = head * job.head_dim;
            let x = job.x[start..start + job.head_dim].as_ptr();
            // SAFETY: the slice bounds above, and `2 · half <= head_dim` (checked by `rope`); the output is
            // as long as `x`, and no two rows overlap.
            unsafe {
                let output = job.output.at(start);
                rotate_head(simd, job.half, x, cos, sin, output);
                let rest = 2 * job.half;
                std::ptr::copy_nonoverlapping(x.add(rest), output.add(rest), job.head_dim - rest);
            }
        }
    }
}

#[inline(always)]
unsafe fn rotate_head<S: Simd>(
    simd: S,
    half: usize,
    x: *const f32,
    cos: *const f32,
    sin: *const f32,
    output: *mut f32,
) {
    let mut column = 0;
    // SAFETY: the caller's promise: `half` floats behind `cos` and `sin`, twice as many behind the others.
    unsafe {
        while column < half {
            let count = S::LANES.min(half - column);
            let cos = simd.load_first(cos.add(column), count);
            let sin = simd.load_first(sin.add(column), count);
            let first = simd.load_first(x.add(column), count);
            let second = simd.load_first(x.add(half + column), count);
            let turned_first = simd.sub(simd.mul(first, cos), simd.mul(second, sin));
            let turned_second = simd.fma(first, sin, simd.mul(second, cos));
            simd.store_first(output.add(column), turned_first, count);
            simd.store_first(output.add(half + column), turned_second, count);
            column += S::LANES;
        }
    }
}
