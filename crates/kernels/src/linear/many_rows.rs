//! Many rows of `x`: weights are widened and packed, panel by panel, and multiplied tile by tile.

use super::{
    cpu::{Call, Layer, Order, Product},
    microkernel::{Left, multiply, pack, tile_columns, tile_rows},
};
use crate::{
    pool::{self, Disjoint},
    scratch::with_scratch,
    simd::{Element, Simd, dispatch},
    view::Floats,
};

/// The most steps along K that are packed at once: a panel of them stays in the second-level cache.
const DEPTH: usize = 1024;

/// The most packed weights of a task, whose panels are multiplied with each block of `x` while a cache holds the block:
/// half a megabyte stays in the second-level cache.
const WEIGHTS: usize = 1 << 17;

/// Panels are grouped only as far as this many groups per thread remain, so that none waits long at the end.
const GROUPS_PER_THREAD: usize = 6;

/// The fewest tasks per thread, if there are rows to be split for it.
const TASKS_PER_THREAD: usize = 2;

/// Multiplications of a call that stays on this thread: another takes as long to join in, and longer if it sleeps.
const ALONE: usize = 64 * 64 * 64;

/// Blocks of a transposed `x` that a task packs side by side: a row of theirs fills some cache lines.
const COLUMN_BLOCKS: usize = 8;

/// How many steps before its use a weight `[inputs, outputs]` is fetched.
const STEPS_AHEAD: usize = 8;

/// The most rows of `x` per task: a task's sums stay in the second-level cache.
const TASK_ROWS: usize = 1024;

/// Neighbouring panels of one product, and a range of row blocks.
#[derive(Clone, Copy)]
struct Task<'a> {
    product: &'a Product<'a>,
    /// The first output.
    column: usize,
    /// How many outputs.
    columns: usize,
    first_block: usize,
    end_block: usize,
}

pub(super) fn run(call: &Call<'_>) {
    let (most_rows, columns) = tile();
    let blocks = Blocks { rows: call.rows, count: call.rows.div_ceil(most_rows) };
    let width = |product: &Product<'_>| if product.gate.is_some() { columns / 2 } else { columns };
    let panels: usize = call.products.iter().map(|product| product.outputs.div_ceil(width(product))).sum();
    let outputs: usize = call.products.iter().map(|product| product.layers().count() * product.outputs).sum();
    let is_alone = call.rows * call.inputs * outputs <= ALONE;
    let threads = if is_alone { 1 } else { pool::threads() };
    let depth = call.inputs.div_ceil(call.inputs.div_ceil(DEPTH).max(1));
    let most = (WEIGHTS / (depth * columns).max(1)).clamp(1, panels.max(1));
    let group = (panels / (threads * GROUPS_PER_THREAD)).clamp(1, most);
    let groups = panels.div_ceil(group).max(1);
    // Splitting rows costs packing the weights several times, so it is the last resort.
    let wanted = (threads * TASKS_PER_THREAD).div_ceil(groups);
    let parts = wanted.min(blocks.count.div_ceil(4)).max(call.rows.div_ceil(TASK_ROWS));
    let mut tasks = Vec::with_capacity(parts * groups);
    for part in 0..parts {
        let (first_block, end_block) = (blocks.count * part / parts, blocks.count * (part + 1) / parts);
        for product in call.products {
            let length = group * width(product);
            for column in (0..product.outputs).step_by(length) {
                let columns = length.min(product.outputs - column);
                tasks.push(Task { product, column, columns, first_block, end_block });
            }
        }
    }
    with_scratch(call.rows * call.inputs, |packed| {
        pack_input(call, blocks, is_alone, packed);
        let packed = &*packed;
        for_each(is_alone, tasks.len(), &|index| {
            let task = tasks[index];
            let rows = blocks.start(task.end_block) - blocks.start(task.first_block);
            let panels = task.columns.div_ceil(width(task.product));
            with_scratch((depth + rows) * columns * panels, |scratch| {
                let (weights, sums) = scratch.split_at_mut(depth * columns * panels);
                multiply_task(call, blocks, task, depth, packed, weights, sums);
            });
        });
    });
}

/// Runs tasks here, or spread over the pool.
fn for_each(is_alone: bool, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
    if is_alone { (0..tasks).for_each(task) } else { pool::for_each(tasks, task) }
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
fn pack_input(call: &Call<'_>, blocks: Blocks, is_alone: bool, packed: &mut [f32]) {
    let packed = Disjoint::new(packed);
    let group = match call.x_order {
        Order::InputsLast => 1,
        Order::InputsFirst => COLUMN_BLOCKS,
    };
    for_each(is_alone, blocks.count.div_ceil(group), &|index| {
        let (first, end) = (index * group, blocks.count.min((index + 1) * group));
        let (start, rows) = (blocks.start(first), blocks.start(end) - blocks.start(first));
        // SAFETY: the blocks do not overlap.
        let to = unsafe { packed.part(start * call.inputs, rows * call.inputs) };
        if call.inputs == 0 {
            return;
        }
        match call.x_order {
            Order::InputsLast => {
                let x = &call.x[start * call.x_stride..][..(rows - 1) * call.x_stride + call.inputs];
                // SAFETY: `x` holds the block's rows, and `to` has room for as many numbers.
                unsafe { pack_rows(x.as_ptr(), call.x_stride, call.inputs, rows, to.as_mut_ptr()) };
            }
            Order::InputsFirst => pack_columns(call, blocks, (first, end), to),
        }
    });
}

dispatch! {
    /// Rows and columns of a tile.
    fn tile() -> (usize, usize) = tile_with;

    unsafe fn pack_rows(from: *const f32, stride: usize, inputs: usize, rows: usize, to: *mut f32) = pack_rows_with;

    fn pack_columns(call: &Call<'_>, blocks: Blocks, range: (usize, usize), to: &mut [f32]) = pack_columns_with;

    fn multiply_task(
        call: &Call<'_>, blocks: Blocks, task: Task<'_>, depth: usize,
        packed: &[f32], weights: &mut [f32], sums: &mut [f32],
    ) = task_with;
}

#[inline(always)]
fn tile_with<S: Simd>(_: S) -> (usize, usize) {
    (tile_rows::<S>(), tile_columns::<S>())
}

/// # Safety
/// `rows <= LANES` rows of `inputs` numbers must be readable, as many numbers writable.
#[inline(always)]
unsafe fn pack_rows_with<S: Simd>(
    simd: S,
    from: *const f32,
    stride: usize,
    inputs: usize,
    rows: usize,
    to: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe { pack(simd, from, stride, rows, inputs, to, rows) }
}

/// The same for an `x` whose rows are columns in memory, several blocks side by side.
#[inline(always)]
fn pack_columns_with<S: Simd>(
    simd: S,
    call: &Call<'_>,
    blocks: Blocks,
    (first, end): (usize, usize),
    to: &mut [f32],
) {
    let mut starts = [0; COLUMN_BLOCKS + 1];
    for (start, block) in starts.iter_mut().zip(first..=end) {
        *start = blocks.start(block);
    }
    let starts = &starts[..=end - first];
    for input in 0..call.inputs {
        let x = &call.x[input * call.x_stride..][..blocks.rows];
        for edges in starts.windows(2) {
            let (row, rows) = (edges[0], edges[1] - edges[0]);
            let from = &x[row..row + rows];
            let to = &mut to[(row - starts[0]) * call.inputs + input * rows..][..rows];
            // SAFETY: both slices hold the block's rows, which are no more than a vector's lanes.
            unsafe { simd.store_first(to.as_mut_ptr(), simd.load_first(from.as_ptr(), rows), rows) };
        }
    }
}

/// `depth` steps along K at a time. For each panel, `weights` has room for so many steps and `sums` for the
/// task's rows.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn task_with<S: Simd>(
    simd: S,
    call: &Call<'_>,
    blocks: Blocks,
    task: Task<'_>,
    depth: usize,
    packed: &[f32],
    weights: &mut [f32],
    sums: &mut [f32],
) {
    let mut start = 0;
    loop {
        let count = depth.min(call.inputs - start);
        pack_weights(simd, call, task, (start, count), weights);
        multiply_blocks(simd, call, blocks, task, packed, (start, count), weights, sums);
        start += count;
        if start == call.inputs {
            break;
        }
    }
}

/// Outputs of a panel: with a gate, half of its columns belong to the gate.
#[inline(always)]
fn panel_width<S: Simd>(product: &Product<'_>) -> usize {
    if product.gate.is_some() { S::LANES } else { tile_columns::<S>() }
}

/// Packs `count` steps of the task's weights, panel by panel. With a gate, the left half of a panel is the
/// gate's and the right half the other layer's; else they are neighbours.
#[inline(always)]
fn pack_weights<S: Simd>(
    simd: S,
    call: &Call<'_>,
    task: Task<'_>,
    (start, count): (usize, usize),
    weights: &mut [f32],
) {
    match (task.product.layer.order, task.product.layer.weight) {
        (Order::InputsLast, _) => pack_outputs(simd, call, task, (start, count), weights),
        (Order::InputsFirst, Floats::F32(w)) => pack_steps(simd, w, task, (start, count), weights),
        (Order::InputsFirst, Floats::Bf16(w)) => pack_steps(simd, w, task, (start, count), weights),
        (Order::InputsFirst, Floats::F16(w)) => pack_steps(simd, w, task, (start, count), weights),
    }
}

/// From a weight `[inputs, outputs]`: each step is widened for all panels at once, which reads memory in order.
#[inline(always)]
fn pack_steps<S: Simd, W: Element>(
    simd: S,
    weight: &[W],
    task: Task<'_>,
    (start, count): (usize, usize),
    weights: &mut [f32],
) {
    let (outputs, stride) = (task.product.outputs, tile_columns::<S>());
    let panels = task.columns.div_ceil(stride);
    assert!(task.product.gate.is_none() && weights.len() >= panels * count * stride);
    for step in 0..count {
        let row = &weight[(start + step) * outputs + task.column..][..task.columns];
        // The next steps lie in other pages, beyond what the hardware fetches by itself.
        let ahead = row.as_ptr().wrapping_add(STEPS_AHEAD * outputs);
        let mut to = weights[step * stride..].as_mut_ptr();
        for column in (0..task.columns).step_by(stride) {
            let from = row.as_ptr().wrapping_add(column);
            simd.prefetch(ahead.wrapping_add(column));
            simd.prefetch(ahead.wrapping_add(column + S::LANES));
            // SAFETY: the row has the columns that are loaded; the panels were checked above.
            unsafe {
                let [left, right] = if column + stride <= task.columns {
                    [W::load(simd, from), W::load(simd, from.add(S::LANES))]
                } else {
                    let width = task.columns - column;
                    let left = S::LANES.min(width);
                    let right = W::load_first(simd, from.wrapping_add(S::LANES), width - left);
                    [W::load_first(simd, from, left), right]
                };
                simd.store(to, left);
                simd.store(to.add(S::LANES), right);
            }
            to = to.wrapping_add(count * stride);
        }
    }
}

/// From weights `[outputs, inputs]`.
#[inline(always)]
fn pack_outputs<S: Simd>(
    simd: S,
    call: &Call<'_>,
    task: Task<'_>,
    (start, count): (usize, usize),
    weights: &mut [f32],
) {
    let product = task.product;
    let (stride, width) = (tile_columns::<S>(), panel_width::<S>(product));
    let panels = task.columns.div_ceil(width);
    assert!(weights.len() >= panels * count * stride && start + count <= call.inputs);
    for half in 0..2 * panels {
        let column = task.column + half / 2 * width;
        let (layer, column): (&Layer<'_>, usize) = match &product.gate {
            Some((gate, _)) if half % 2 == 0 => (gate, column),
            Some(_) => (&product.layer, column),
            None => (&product.layer, column + half % 2 * S::LANES),
        };
        let rows = product.outputs.saturating_sub(column).min(S::LANES);
        let offset = column.min(product.outputs) * call.inputs + start;
        let to = weights.as_mut_ptr().wrapping_add(half / 2 * count * stride + half % 2 * S::LANES);
        // SAFETY: the weight has `rows` rows from `column` on, and the panels were checked above.
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

/// Multiplies the task's rows with `count` packed steps from `start` on; writes results after the last.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn multiply_blocks<S: Simd>(
    simd: S,
    call: &Call<'_>,
    blocks: Blocks,
    task: Task<'_>,
    packed: &[f32],
    (start, count): (usize, usize),
    weights: &[f32],
    sums: &mut [f32],
) {
    let (columns, width) = (tile_columns::<S>(), panel_width::<S>(task.product));
    let panels = task.columns.div_ceil(width);
    let first_row = blocks.start(task.first_block);
    let rows = blocks.start(task.end_block) - first_row;
    assert!(weights.len() >= panels * count * columns && sums.len() >= panels * rows * columns);
    assert!(packed.len() == call.rows * call.inputs);
    let is_last = start + count == call.inputs;
    // Nothing is added to such sums: they go where the result is.
    let is_plain = start == 0 && is_last && task.product.is_plain();
    for block in task.first_block..task.end_block {
        let (first, end) = (blocks.start(block), blocks.start(block + 1));
        let rows = end - first;
        for panel in 0..panels {
            let column = task.column + panel * width;
            // SAFETY: the packed input holds all blocks, the sums those of the task; tasks have columns
            // or rows of their own.
            unsafe {
                let a = packed.as_ptr().add(first * call.inputs + start * rows);
                let a = Left { start: a, row_stride: 1, step_stride: rows };
                let b = weights.as_ptr().add(panel * count * columns);
                let c = sums.as_mut_ptr().add(((first - first_row) * panels + panel * rows) * columns);
                let width = width.min(task.columns - panel * width);
                if is_last {
                    (first..end).for_each(|row| task.product.prefetch(simd, row, column, width));
                }
                if is_plain && width == columns {
                    let c = task.product.place(first, column);
                    multiply(simd, rows, count, a, (b, columns), c, false);
                    continue;
                }
                multiply(simd, rows, count, a, (b, columns), (c, columns), start > 0);
                if is_last {
                    for row in 0..rows {
                        let left = c.add(row * columns).cast_const();
                        let values = if task.product.gate.is_some() { left.add(S::LANES) } else { left };
                        task.product.finish(simd, (left, values), first + row, column, width);
                    }
                }
            }
        }
    }
}
