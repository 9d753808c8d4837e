//! Many rows of `x`: weights are widened and packed, panel by panel, and multiplied tile by tile.

use super::{
    cpu::{Call, Layer, Product},
    microkernel::{Left, multiply, pack, tile_columns, tile_rows},
};
use crate::{
    pool::{self, Disjoint},
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

/// A panel of one product, and a range of row blocks.
#[derive(Clone, Copy)]
struct Task<'a> {
    product: &'a Product<'a>,
    column: usize,
    first_block: usize,
    end_block: usize,
}

pub(super) fn run(call: &Call<'_>) {
    let (most_rows, columns) = tile();
    let blocks = Blocks { rows: call.rows, count: call.rows.div_ceil(most_rows) };
    let width = |product: &Product<'_>| if product.gate.is_some() { columns / 2 } else { columns };
    let panels: usize = call.products.iter().map(|product| product.outputs.div_ceil(width(product))).sum();
    let wanted = (pool::threads() * TASKS_PER_THREAD).div_ceil(panels.max(1));
    let parts = wanted.min(blocks.count.div_ceil(4)).max(call.rows.div_ceil(TASK_ROWS));
    let mut tasks = Vec::with_capacity(parts * panels);
    for part in 0..parts {
        let (first_block, end_block) = (blocks.count * part / parts, blocks.count * (part + 1) / parts);
        for product in call.products {
            for column in (0..product.outputs).step_by(width(product)) {
                tasks.push(Task { product, column, first_block, end_block });
            }
        }
    }
    let depth = call.inputs.min(DEPTH);
    with_scratch(call.rows * call.inputs, |packed| {
        pack_input(call, blocks, packed);
        let packed = &*packed;
        pool::for_each(tasks.len(), &|index| {
            let task = tasks[index];
            let rows = blocks.start(task.end_block) - blocks.start(task.first_block);
            with_scratch((depth + rows) * columns, |scratch| {
                let (panel, sums) = scratch.split_at_mut(depth * columns);
                multiply_task(call, blocks, task, packed, panel, sums);
            });
        });
    });
}

/// Rows of `x` in blocks of nearly the same size, none larger than a tile.
#[derive(Clone, Copy)]
struct Blocks {
    rows: usize,
    count: usize,
}

impl Blocks {
    /// The first row of a block; for the block after the last, the number of rows.
    #[inline(always)]
    fn start(self, block: usize) -> usize {
        self.rows * block / self.count
    }
}

/// Packs each block of `x` for the broadcasts of the tiles: `[K, rows of the block]`.
fn pack_input(call: &Call<'_>, blocks: Blocks, packed: &mut [f32]) {
    let packed = Disjoint::new(packed);
    pool::for_each(blocks.count, &|block| {
        let (start, end) = (blocks.start(block), blocks.start(block + 1));
        let rows = end - start;
        let x = &call.x[start * call.inputs..end * call.inputs];
        // SAFETY: the blocks do not overlap.
        let to = unsafe { packed.part(start * call.inputs, rows * call.inputs) };
        // SAFETY: `x` holds the block's rows, and `to` has room for as many numbers.
        unsafe { pack_rows(x.as_ptr(), call.inputs, rows, to.as_mut_ptr()) };
    });
}

dispatch! {
    /// Rows and columns of a tile.
    fn tile() -> (usize, usize) = tile_with;

    unsafe fn pack_rows(from: *const f32, inputs: usize, rows: usize, to: *mut f32) = pack_rows_with;

    fn multiply_task(
        call: &Call<'_>, blocks: Blocks, task: Task<'_>, packed: &[f32], panel: &mut [f32], sums: &mut [f32],
    ) = task_with;
}

#[inline(always)]
fn tile_with<S: Simd>(_: S) -> (usize, usize) {
    (tile_rows::<S>(), tile_columns::<S>())
}

/// # Safety
/// `rows <= LANES` rows of `inputs` numbers must be readable, as many numbers writable.
#[inline(always)]
unsafe fn pack_rows_with<S: Simd>(simd: S, from: *const f32, inputs: usize, rows: usize, to: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe { pack(simd, from, inputs, rows, inputs, to, rows) }
}

/// `panel` has room for as many steps along K as are done at once, `sums` for the task's tiles.
#[inline(always)]
fn task_with<S: Simd>(
    simd: S,
    call: &Call<'_>,
    blocks: Blocks,
    task: Task<'_>,
    packed: &[f32],
    panel: &mut [f32],
    sums: &mut [f32],
) {
    let depth = panel.len() / tile_columns::<S>();
    let mut start = 0;
    loop {
        let count = depth.min(call.inputs - start);
        pack_panel(simd, call, task, start, count, panel);
        multiply_panel(simd, call, blocks, task, packed, (start, count), panel, sums);
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
        let to = panel.as_mut_ptr().wrapping_add(half * S::LANES);
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

/// Multiplies the task's rows with a panel of `count` steps from `start` on; writes results after the last.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn multiply_panel<S: Simd>(
    simd: S,
    call: &Call<'_>,
    blocks: Blocks,
    task: Task<'_>,
    packed: &[f32],
    (start, count): (usize, usize),
    panel: &[f32],
    sums: &mut [f32],
) {
    let columns = tile_columns::<S>();
    let first_row = blocks.start(task.first_block);
    let rows = blocks.start(task.end_block) - first_row;
    assert!(sums.len() >= rows * columns && packed.len() == call.rows * call.inputs);
    let is_last = start + count == call.inputs;
    let width = if task.product.gate.is_some() { S::LANES } else { columns };
    let width = width.min(task.product.outputs - task.column);
    for block in task.first_block..task.end_block {
        let (first, end) = (blocks.start(block), blocks.start(block + 1));
        let rows = end - first;
        // SAFETY: the packed input holds all blocks, the sums those of the task; tasks have columns or
        // rows of their own.
        unsafe {
            let a = packed.as_ptr().add(first * call.inputs + start * rows);
            let a = Left { start: a, row_stride: 1, step_stride: rows };
            let c = sums.as_mut_ptr().add((first - first_row) * columns);
            multiply(simd, rows, count, a, (panel.as_ptr(), columns), (c, columns), start > 0);
            if is_last {
                for row in 0..rows {
                    let left = c.add(row * columns).cast_const();
                    let values = if task.product.gate.is_some() { left.add(S::LANES) } else { left };
                    task.product.finish(simd, (left, values), first + row, task.column, width);
                }
            }
        }
    }
}
