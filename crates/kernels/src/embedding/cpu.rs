//! The CPU implementation: reads only the rows that are asked for.

use std::ops::Range;

use candle_core::{Device, Result, Tensor};

use super::Used;
use crate::{
    fresh::Fresh,
    memory::huge_vec,
    output::{Output, filled},
    pool,
    simd::{Element, Simd, dispatch, for_vectors, load, store},
    view::{Floats, View},
};

/// Elements per task: enough to outweigh handing it to another thread.
const TASK: usize = 16 * 1024;

/// A backward pass. Ids are within the vocabulary that `output` has rows for.
struct Sums<'a> {
    dy: &'a [f32],
    used: &'a Used,
    width: usize,
    scale: f32,
    output: Output<f32>,
}

/// Where one of this many rows is used, the gradient lies on huge pages: a fault for each page that it touches, and to
/// clear it, would take longer than the sums.
const DENSE: usize = 8;

struct Job<'a, W> {
    table: &'a [W],
    width: usize,
    ids: &'a [u32],
    scale: f32,
    output: Output<f32>,
}

pub(super) fn embedding(table: &Tensor, ids: &[u32], scale: f32) -> Result<Fresh> {
    let (_vocabulary, width) = table.dims2()?;
    Ok(match View::new(table).floats("embedding: `table`")? {
        Floats::F32(table) => gather(table, width, ids, scale),
        Floats::Bf16(table) => gather(table, width, ids, scale),
        Floats::F16(table) => gather(table, width, ids, scale),
    })
}

pub(super) fn backward(used: &Used, dy: &Tensor, vocabulary: usize, scale: f32) -> Result<Tensor> {
    let (_rows, width) = dy.dims2()?;
    let dy = View::new(dy);
    let dy = dy.f32s("embedding_backward: `dy`")?;
    // Pages of rows that are not used are never touched, and the others are first touched by writing: to read one would
    // be another fault.
    let size = vocabulary * width;
    let is_dense = used.ids.len() * DENSE >= vocabulary;
    let mut gradient = if is_dense { huge_vec(size)? } else { vec![0.; size] };
    let sums = Sums { dy, used, width, scale, output: Output::new(gradient.as_mut_ptr()) };
    let ids_per_task = (TASK / width.max(1)).max(1);
    pool::for_each(used.ids.len().div_ceil(ids_per_task), &|task| {
        let first = task * ids_per_task;
        sum_ids(&sums, first..used.ids.len().min(first + ids_per_task));
    });
    Tensor::from_vec(gradient, (vocabulary, width), &Device::Cpu)
}

fn gather<W: Element>(table: &[W], width: usize, ids: &[u32], scale: f32) -> Fresh {
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
    Fresh::from_vec(output, (ids.len(), width))
}

dispatch! {
    fn gather_rows<W: Element>(job: &Job<'_, W>, rows: Range<usize>) = gather_rows_with;
    fn sum_ids(sums: &Sums<'_>, ids: Range<usize>) = sum_ids_with;
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

#[inline(always)]
fn sum_ids_with<S: Simd>(simd: S, sums: &Sums<'_>, ids: Range<usize>) {
    let (width, factor) = (sums.width, simd.splat(sums.scale));
    for id in &sums.used.ids[ids] {
        // SAFETY: the output has a row for each id of the vocabulary, and nobody else writes this one.
        let sum = unsafe { std::slice::from_raw_parts_mut(sums.output.at(id.id as usize * width), width) };
        for place in id.first as usize..id.end as usize {
            let row = |place: usize| sums.used.order[place] as usize * width;
            let dy = &sums.dy[row(place)..][..width];
            // Rows come in the order of their ids, which no hardware foresees.
            let next = sums.dy.as_ptr().wrapping_add(row((place + 1).min(sums.used.order.len() - 1)));
            if place == id.first as usize {
                for_vectors!(S, width, |column, count| {
                    simd.prefetch(next.wrapping_add(column));
                    store(simd, sum, column, count, simd.mul(load(simd, dy, column, count), factor));
                });
                continue;
            }
            for_vectors!(S, width, |column, count| {
                simd.prefetch(next.wrapping_add(column));
                let total = simd.fma(load(simd, dy, column, count), factor, load(simd, sum, column, count));
                store(simd, sum, column, count, total);
            });
        }
    }
}
