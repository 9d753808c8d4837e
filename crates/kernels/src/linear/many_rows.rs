//! Many rows of `x`: weights are widened and packed, panel by panel, and multiplied tile by tile.

use super::{
    cpu::{Call, Layer, Product},
    microkernel::{Left, multiply, pack, tile_columns, tile_rows},
};
use crate::{
    pool,
    scratch::with_scratch,
    simd::{Simd, dispatch},
    view::Floats,
};

/// Steps along K that are packed at once: a panel of them stays in the second-level cache.
const DEPTH: usize = 1024;

/// Rows of `x` per task: few enough for the caches, enough to be worth the packing.
const TASK_ROWS: usize = 1024;

/// The fewest tasks per thread, if rows have to be split for it.
const TASKS_PER_THREAD: usize = 4;

/// A panel of one product, and a range of rows.
#[derive(Clone, Copy)]
struct Task<'a> {
    product: &'a Product<'a>,
    column: usize,
    start: usize,
    rows: usize,
}

pub(super) fn run(call: &Call<'_>) {
    let (most_rows, columns) = tile();
    let width = |product: &Product<'_>| if product.gate.is_some() { columns / 2 } else { columns };
    let panels: usize = call.products.iter().map(|product| product.outputs.div_ceil(width(product))).sum();
    let wanted = (pool::threads() * TASKS_PER_THREAD).div_ceil(panels.max(1));
    let parts = wanted.min(call.rows.div_ceil(4 * most_rows)).max(call.rows.div_ceil(TASK_ROWS));
    let mut tasks = Vec::with_capacity(parts * panels);
    for part in 0..parts {
        let (start, end) = (call.rows * part / parts, call.rows * (part + 1) / parts);
        for product in call.products {
            for column in (0..product.outputs).step_by(width(product)) {
                tasks.push(Task { product, column, start, rows: end - start });
            }
        }
    }
    let depth = call.inputs.min(DEPTH);
    pool::for_each(tasks.len(), &|index| {
        let task = tasks[index];
        with_scratch((depth + task.rows) * columns, |scratch| {
            let (panel, sums) = scratch.split_at_mut(depth * columns);
            multiply_task(call, task, depth, panel, sums);
        });
    });
}

dispatch! {
    /// Rows and columns of a tile.
    fn tile() -> (usize, usize) = tile_with;
    fn multiply_task(
        call: &Call<'_>, task: Task<'_>, depth: usize, panel: &mut [f32], sums: &mut [f32],
    ) = task_with;
}

#[inline(always)]
fn tile_with<S: Simd>(_: S) -> (usize, usize) {
    (tile_rows::<S>(), tile_columns::<S>())
}

/// `depth` steps along K at a time.
#[inline(always)]
fn task_with<S: Simd>(
    simd: S,
    call: &Call<'_>,
    task: Task<'_>,
    depth: usize,
    panel: &mut [f32],
    sums: &mut [f32],
) {
    let mut start = 0;
    loop {
        let count = depth.min(call.inputs - start);
        pack_panel(simd, call, task, start, count, panel);
        multiply_panel(simd, call, task, start, count, panel, sums);
        start += count;
        if start == call.inputs {
            break;
        }
    }
}

/// Packs `count` steps of the task's columns. With a gate, the left half of the panel is the gate's and the
/// right half the other layer's; else they are neighbours.
#[inline(always)]
fn pack_panel<S: Simd>(
    simd: S,
    call: &Call<'_>,
    task: Task<'_>,
    start: usize,
    count: usize,
    panel: &mut [f32],
) {
    assert!(panel.len() >= count * tile_columns::<S>() && start + count <= call.inputs);
    let product = task.product;
    let halves: [(&Layer<'_>, usize); 2] = match &product.gate {
        Some((gate, _)) => [(gate, task.column), (&product.layer, task.column)],
        None => [(&product.layer, task.column), (&product.layer, task.column + S::LANES)],
    };
    for (half, (layer, column)) in halves.into_iter().enumerate() {
        let rows = product.outputs.saturating_sub(column).min(S::LANES);
        let offset = column.min(product.outputs) * call.inputs + start;
        let stride = tile_columns::<S>();
        let to = panel[half * S::LANES..].as_mut_ptr();
        // SAFETY: the weight has `rows` rows from `column` on, and the panel was checked above.
        unsafe {
            match layer.weight {
                Floats::F32(w) => {
                    pack(simd, w.as_ptr().wrapping_add(offset), call.inputs, rows, count, to, stride);
                }
                Floats::Bf16(w) => {
                    pack(simd, w.as_ptr().wrapping_add(offset), call.inputs, rows, count, to, stride);
                }
                Floats::F16(w) => {
                    pack(simd, w.as_ptr().wrapping_add(offset), call.inputs, rows, count, to, stride);
                }
            }
        }
    }
}

/// Multiplies the task's rows with a panel; writes results after the last steps.
#[inline(always)]
fn multiply_panel<S: Simd>(
    simd: S,
    call: &Call<'_>,
    task: Task<'_>,
    start: usize,
    count: usize,
    panel: &[f32],
    sums: &mut [f32],
) {
    let columns = tile_columns::<S>();
    assert!(sums.len() >= task.rows * columns && (task.start + task.rows) * call.inputs <= call.x.len());
    let is_last = start + count == call.inputs;
    let width = if task.product.gate.is_some() { S::LANES } else { columns };
    let width = width.min(task.product.outputs - task.column);
    let blocks = task.rows.div_ceil(tile_rows::<S>());
    for block in 0..blocks {
        let (first, end) = (task.rows * block / blocks, task.rows * (block + 1) / blocks);
        // SAFETY: `x` and the sums hold the task's rows; tasks have columns or rows of their own.
        unsafe {
            let a = Left {
                start: call.x.as_ptr().add((task.start + first) * call.inputs + start),
                row_stride: call.inputs,
                step_stride: 1,
            };
            let c = sums.as_mut_ptr().add(first * columns);
            multiply(simd, end - first, count, a, (panel.as_ptr(), columns), (c, columns), start > 0);
            if is_last {
                for row in first..end {
                    let left = sums.as_ptr().add(row * columns);
                    let values = if task.product.gate.is_some() { left.add(S::LANES) } else { left };
                    task.product.finish(simd, (left, values), task.start + row, task.column, width);
                }
            }
        }
    }
}
