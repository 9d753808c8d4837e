//! Many rows of `x`: both operands are widened and packed, and multiplied tile by tile.
//!
//! The smaller operand is packed once, and every task streams all of it from the outer caches. The larger one is
//! packed piece by piece: each task keeps one in the second-level cache and is the only one to read it. Rows of `x` that
//! few panels are multiplied with are not packed: it would cost more than it saves.

mod packing;

use std::ops::Range;

use super::{
    cpu::{Call, Order, Product},
    microkernel::{Ahead, Packed, Rows, Tile, multiply_ahead, tile, tile_columns},
};
use crate::{
    parts::Parts,
    pool,
    scratch::with_scratch,
    simd::{Simd, dispatch},
};

/// The most steps along K that are packed at once.
const DEPTH: usize = 2048;

/// The most packed numbers that a task keeps, half a megabyte: with what is streamed past them, they stay in the
/// second-level cache.
const KEPT: usize = 1 << 17;

/// Numbers of the streamed operand that the second-level cache holds beside them.
const NEAR: usize = 2 * KEPT;

/// The fewest pieces per thread, where there is enough to be divided: so much of its time a thread may wait at the end.
const PIECES_PER_THREAD: usize = 7;

/// The fewest tasks per thread, at the price of packing pieces several times.
const TASKS_PER_THREAD: usize = 2;

/// The most panels for which rows of `x` are read where they lie: packing them takes as long as multiplying them with one
/// panel to two, but packed rows share the first-level cache better with whoever else has it.
const IN_PLACE_PANELS: usize = 20;

/// The same where rows lie a multiple of [`COLLIDING`] numbers apart: their lines push each other out of the first-level
/// cache.
const COLLIDING_PANELS: usize = 8;

/// Numbers from one line of the first-level cache to the next that takes its place.
const COLLIDING: usize = 1024;

/// Multiplications of a call that stays on this thread: another takes as long to join in, and longer if it sleeps.
const ALONE: usize = 64 * 64 * 64;

/// How a call is computed.
struct Plan<'a> {
    call: &'a Call<'a>,
    /// Steps along K that are packed at once.
    slices: Parts,
    /// Rows of `x` that share a tile.
    blocks: Parts,
    /// All panels.
    spans: Vec<Span<'a>>,
    panels: usize,
    /// Columns of a panel.
    columns: usize,
    /// What is packed once.
    shared: Operand,
    /// Whether `x` is not packed, but read where it lies.
    in_place: bool,
    threads: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Operand {
    X,
    Weights,
}

/// Neighbouring panels of one product.
#[derive(Clone, Copy)]
struct Span<'a> {
    product: &'a Product<'a>,
    /// The first output.
    column: usize,
    /// How many outputs.
    columns: usize,
    /// The first panel, counted through all products.
    first_panel: usize,
    panels: usize,
}

/// Blocks of `x` and the panels that they are multiplied with.
#[derive(Clone)]
struct Task<'a> {
    blocks: Range<usize>,
    spans: &'a [Span<'a>],
}

impl Task<'_> {
    /// How many panels all its spans have: they are neighbours.
    fn panels(&self) -> usize {
        let (first, last) = (&self.spans[0], &self.spans[self.spans.len() - 1]);
        last.first_panel + last.panels - first.first_panel
    }
}

pub(super) fn run(call: &Call<'_>) {
    let plan = Plan::new(call);
    if call.rows == 0 || plan.panels == 0 {
        return;
    }
    let tasks = plan.tasks();
    with_scratch(plan.packed_width(plan.shared) * call.inputs, |shared| {
        packing::pack_shared(&plan, shared);
        let shared = &*shared;
        plan.for_each(tasks.len(), &|index| {
            let task = &tasks[index];
            let rows = plan.blocks.start(task.blocks.end) - plan.blocks.start(task.blocks.start);
            let columns = task.panels() * plan.columns;
            let kept = plan.slices.largest()
                * match plan.shared {
                    Operand::X => columns,
                    Operand::Weights if plan.in_place => 0,
                    Operand::Weights => rows,
                };
            let sums = if plan.sums_are_results() { 0 } else { rows * columns };
            with_scratch(kept + sums, |scratch| {
                let (kept, sums) = scratch.split_at_mut(kept);
                multiply_task(&plan, task, shared, kept, sums);
            });
        });
    });
}

impl<'a> Plan<'a> {
    fn new(call: &'a Call<'a>) -> Self {
        let (most_rows, columns) = tile();
        let panels_of = |product: &Product<'_>| product.outputs.div_ceil(panel_width(product, columns));
        let outputs: usize =
            call.products.iter().map(|product| product.layers().count() * product.outputs).sum();
        let is_alone = call.rows * call.inputs * outputs <= ALONE;
        let panels = call.products.iter().map(panels_of).sum();
        let collide = call.x_stride.is_multiple_of(COLLIDING);
        let most_in_place = if collide { COLLIDING_PANELS } else { IN_PLACE_PANELS };
        let mut plan = Self {
            call,
            slices: Parts::at_most(DEPTH, call.inputs),
            blocks: Parts::at_most(most_rows, call.rows),
            spans: Vec::new(),
            panels,
            columns,
            shared: if call.rows <= outputs { Operand::X } else { Operand::Weights },
            in_place: call.x_order == Order::InputsLast && panels <= most_in_place,
            threads: if is_alone { 1 } else { pool::threads() },
        };
        let pieces = plan.pieces(plan.panels, columns);
        let mut first_panel = 0;
        for product in call.products {
            let (whole, width) = (panels_of(product), panel_width(product, columns));
            let count = (pieces * whole / plan.panels.max(1)).max(1);
            for panels in (Parts { whole, count }).ranges() {
                let column = panels.start * width;
                plan.spans.push(Span {
                    product,
                    column,
                    columns: (panels.end * width).min(product.outputs) - column,
                    first_panel: first_panel + panels.start,
                    panels: panels.len(),
                });
            }
            first_panel += whole;
        }
        plan
    }

    /// Into how many pieces `count` blocks or panels of `width` are divided: evenly among the threads, so that all end
    /// at the same time.
    fn pieces(&self, count: usize, width: usize) -> usize {
        let pieces = Parts::at_most(KEPT / (self.slices.largest() * width).max(1), count).count;
        match self.threads {
            1 => pieces,
            threads => pieces.max(threads * PIECES_PER_THREAD).next_multiple_of(threads).min(count.max(1)),
        }
    }

    fn tasks(&self) -> Vec<Task<'_>> {
        let (blocks, spans) = match self.shared {
            Operand::X => {
                let most = self.blocks.count.div_ceil(4);
                (self.parts(self.spans.len()).min(most), self.spans.len())
            }
            Operand::Weights => {
                let pieces = self.pieces(self.blocks.count, self.blocks.largest());
                (pieces, self.parts(pieces).min(self.spans.len()))
            }
        };
        let blocks = Parts { whole: self.blocks.count, count: blocks };
        let spans = Parts { whole: self.spans.len(), count: spans };
        let tasks = blocks.ranges().flat_map(|blocks| {
            spans.ranges().map(move |spans| Task { blocks: blocks.clone(), spans: &self.spans[spans] })
        });
        tasks.collect()
    }

    /// Into how many parts the streamed operand is divided if the other one has `pieces`.
    fn parts(&self, pieces: usize) -> usize {
        match self.threads {
            1 => 1,
            threads => (threads * TASKS_PER_THREAD).div_ceil(pieces),
        }
    }

    /// Numbers of a step of an operand that are packed.
    fn packed_width(&self, operand: Operand) -> usize {
        if operand == Operand::X && self.in_place { 0 } else { self.width(operand) }
    }

    /// Numbers of a step of an operand.
    fn width(&self, operand: Operand) -> usize {
        match operand {
            Operand::X => self.call.rows,
            Operand::Weights => self.panels * self.columns,
        }
    }

    /// Whether all sums are made where the results are.
    fn sums_are_results(&self) -> bool {
        let is_result =
            |product: &Product<'_>| product.is_plain() && product.outputs.is_multiple_of(self.columns);
        self.call.products.iter().all(is_result)
    }

    /// Runs tasks here, or spread over the pool.
    fn for_each(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if self.threads == 1 { (0..tasks).for_each(task) } else { pool::for_each(tasks, task) }
    }
}

/// Outputs of a panel: with a gate, half of its columns belong to the gate.
#[inline(always)]
fn panel_width(product: &Product<'_>, columns: usize) -> usize {
    if product.gate.is_some() { columns / 2 } else { columns }
}

dispatch! {
    fn multiply_task(
        plan: &Plan<'_>, task: &Task<'_>, shared: &[f32], kept: &mut [f32], sums: &mut [f32],
    ) = task_with;
}

/// Slice by slice, packs the task's piece of the larger operand and multiplies it.
#[inline(always)]
fn task_with<S: Simd>(
    simd: S,
    plan: &Plan<'_>,
    task: &Task<'_>,
    shared: &[f32],
    kept: &mut [f32],
    sums: &mut [f32],
) {
    for steps in plan.slices.ranges() {
        let width = plan.packed_width(plan.shared);
        let shared = &shared[steps.start * width..][..steps.len() * width];
        let first_row = plan.blocks.start(task.blocks.start);
        let first_panel = task.spans[0].first_panel;
        let slice = match plan.shared {
            Operand::X => {
                for span in task.spans {
                    let to = &mut kept[(span.first_panel - first_panel) * steps.len() * plan.columns..];
                    packing::pack_span(simd, plan.call, span, steps.clone(), to);
                }
                Slice { steps, x: shared, first_row: 0, weights: kept, first_panel }
            }
            Operand::Weights => {
                if !plan.in_place {
                    packing::pack_blocks(simd, plan, task.blocks.clone(), steps.clone(), kept);
                }
                Slice { steps, x: kept, first_row, weights: shared, first_panel: 0 }
            }
        };
        for span in task.spans {
            multiply_span(simd, plan, task, span, &slice, sums);
        }
    }
}

/// Some steps of both operands, packed.
struct Slice<'a> {
    steps: Range<usize>,
    /// `[steps, rows]` of each block, from that of `first_row` on, if they are packed.
    x: &'a [f32],
    first_row: usize,
    /// `[steps, columns]` of each panel from `first_panel` on.
    weights: &'a [f32],
    first_panel: usize,
}

impl Slice<'_> {
    /// A block of `x` that starts with a row.
    #[inline(always)]
    fn block(&self, plan: &Plan<'_>, row: usize) -> *const f32 {
        if plan.in_place {
            plan.call.x.as_ptr().wrapping_add(row * plan.call.x_stride + self.steps.start)
        } else {
            self.x.as_ptr().wrapping_add((row - self.first_row) * self.steps.len())
        }
    }

    /// A panel, counted through all products.
    #[inline(always)]
    fn panel(&self, plan: &Plan<'_>, panel: usize) -> *const f32 {
        self.weights.as_ptr().wrapping_add((panel - self.first_panel) * self.steps.len() * plan.columns)
    }
}

/// Adds a slice's products of the task's blocks and a span; writes results after the last slice.
#[inline(always)]
fn multiply_span<S: Simd>(
    simd: S,
    plan: &Plan<'_>,
    task: &Task<'_>,
    span: &Span<'_>,
    slice: &Slice<'_>,
    sums: &mut [f32],
) {
    let count = slice.steps.len();
    let (first_row, end_row) = (plan.blocks.start(task.blocks.start), plan.blocks.start(task.blocks.end));
    if plan.in_place {
        assert!(plan.call.x.len() >= (end_row - 1) * plan.call.x_stride + slice.steps.end);
    } else {
        assert!(slice.x.len() >= (end_row - slice.first_row) * count);
    }
    let end_panel = span.first_panel - slice.first_panel + span.panels;
    assert!(slice.weights.len() >= end_panel * count * plan.columns);
    assert!(plan.sums_are_results() || sums.len() >= (end_row - first_row) * task.panels() * plan.columns);
    // What is kept is gone through again and again, the rest once.
    let (streamed, kept) = match plan.shared {
        Operand::X => (task.blocks.len(), span.panels),
        Operand::Weights => (span.panels, task.blocks.len()),
    };
    for outer in 0..streamed {
        for inner in 0..kept {
            let place = if plan.shared == Operand::X { (outer, inner) } else { (inner, outer) };
            // SAFETY: the lengths were checked above; tasks have columns or rows of their own.
            unsafe { multiply_tile(simd, plan, task, span, slice, place, sums.as_mut_ptr()) };
        }
    }
}

/// The same for a block of the task and a panel of the span.
///
/// # Safety
/// The slice must hold both, and `sums` have room for the task's, unless all of them are results. Nobody else may touch
/// the results.
#[inline(always)]
unsafe fn multiply_tile<S: Simd>(
    simd: S,
    plan: &Plan<'_>,
    task: &Task<'_>,
    span: &Span<'_>,
    slice: &Slice<'_>,
    (block, panel): (usize, usize),
    sums: *mut f32,
) {
    let (product, columns, depth) = (span.product, tile_columns::<S>(), slice.steps.len());
    let (is_first, is_last) = (slice.steps.start == 0, slice.steps.end == plan.call.inputs);
    let rows = plan.blocks.range(task.blocks.start + block);
    let width = panel_width(product, columns);
    let column = span.column + panel * width;
    let width = width.min(span.columns - panel * width);
    let a = slice.block(plan, rows.start);
    let b = slice.panel(plan, span.first_panel + panel);

    let is_far = depth * plan.width(plan.shared) > NEAR;
    let following = match plan.shared {
        _ if !is_far => Ahead::NOTHING,
        // Pieces of rows do not lie side by side.
        Operand::X if plan.in_place && depth < plan.call.x_stride => Ahead::NOTHING,
        Operand::X => {
            let numbers = rows.len() * depth;
            Ahead::share(a.wrapping_add(numbers), numbers, (panel, span.panels))
        }
        Operand::Weights => {
            let numbers = columns * depth;
            Ahead::share(b.wrapping_add(numbers), numbers, (block, task.blocks.len()))
        }
    };
    let (result, result_stride) = product.place(rows.start, column);
    let is_result = product.is_plain() && width.is_multiple_of(S::LANES);
    let mut ahead = [Ahead::NOTHING, Ahead::NOTHING, following];
    if is_result || is_last {
        ahead[0] = Ahead::rows(result, result_stride, rows.len());
        ahead[1] = Ahead::rows(result.wrapping_add(width - 1), result_stride, rows.len());
    }
    let (c, adds) = if is_result {
        ((result, result_stride), product.adds || !is_first)
    } else {
        let above = (rows.start - plan.blocks.start(task.blocks.start)) * task.panels();
        let before = (span.first_panel + panel - task.spans[0].first_panel) * rows.len();
        ((sums.wrapping_add((above + before) * columns), columns), !is_first)
    };
    let vectors = if product.gate.is_some() { 2 } else { width.div_ceil(S::LANES) };
    let tile = Tile { rows: rows.len(), vectors, depth, b: (b, columns), c, adds, ahead: &ahead };
    // SAFETY: the caller's promises.
    unsafe {
        if plan.in_place {
            multiply_ahead(simd, Rows::new(a, plan.call.x_stride), &tile);
        } else {
            multiply_ahead(simd, Packed { start: a, rows: rows.len() }, &tile);
        }
        if is_last && !is_result {
            for (index, row) in rows.enumerate() {
                let left = c.0.add(index * columns).cast_const();
                let values = if product.gate.is_some() { left.add(S::LANES) } else { left };
                product.finish(simd, (left, values), row, column, width);
            }
        }
    }
}
