//! The CPU implementation: reads only the rows that are asked for.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::{
    output::{Output, filled},
    pool,
    simd::{Element, Simd, dispatch},
    view::{Floats, View},
};

/// Elements per task: enough to outweigh handing it to another thread.
const TASK: usize = 16 * 1024;

struct Job<'a, W> {
    table: &'a [W],
    width: usize,
    ids: &'a [u32],
    scale: f32,
    output: Output<f32>,
}

pub(super) fn embedding(table: &Tensor, ids: &[u32], scale: f32, compute: DType) -> Result<Tensor> {
    if compute != DType::F32 {
        bail!("embedding: the compute dtype is {compute:?}, expected F32 on the CPU");
    }
    let (_vocabulary, width) = table.dims2()?;
    match View::new(table).floats("embedding: `table`")? {
        Floats::F32(table) => gather(table, width, ids, scale),
        Floats::Bf16(table) => gather(table, width, ids, scale),
        Floats::F16(table) => gather(table, width, ids, scale),
    }
}

fn gather<W: Element>(table: &[W], width: usize, ids: &[u32], scale: f32) -> Result<Tensor> {
    let rows_per_task = (TASK / width.max(1)).max(1);
    let tasks = ids.len().div_ceil(rows_per_task);
    let run = |output| {
        let job = Job { table, width, ids, scale, output };
        if tasks <= 2 {
            return gather_rows(&job, 0..ids.len());
        }
        pool::for_each(tasks, &|task| {
            let first = task * rows_per_task;
            gather_rows(&job, first..ids.len().min(first + rows_per_task));
        });
    };
    // SAFETY: `gather_rows` writes every row.
    let output = unsafe { filled(ids.len() * width, run) };
    Tensor::from_vec(output, (ids.len(), width), &Device::Cpu)
}

dispatch! {
    fn gather_rows<W: Element>(job: &Job<'_, W>, rows: Range<usize>) = gather_rows_with;
}

#[inline(always)]
fn gather_rows_with<S: Simd, W: Element>(simd: S, job: &Job<'_, W>, rows: Range<usize>) {
    let factor = simd.splat(job.scale);
    for row in rows {
        let start = job.ids[row] as usize * job.width;
        let from = job.table[start..start + job.width].as_ptr();
        let whole = job.width - job.width % S::LANES;
        // SAFETY: the slice bounds above; the output has `width` elements per id, and no two rows overlap.
        unsafe {
            let to = job.output.at(row * job.width);
            for column in (0..whole).step_by(S::LANES) {
                simd.store(to.add(column), simd.mul(W::load(simd, from.add(column)), factor));
            }
            let rest = job.width - whole;
            if rest > 0 {
                let value = W::load_first(simd, from.add(whole), rest);
                simd.store_first(to.add(whole), simd.mul(value, factor), rest);
            }
        }
    }
}
