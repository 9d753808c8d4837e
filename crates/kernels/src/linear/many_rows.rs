//! Many rows of `x`: both operands are widened and packed, and multiplied tile by tile.
//!
//! The smaller operand is packed once, and every task streams all of it from the outer caches. The larger one is
//! packed piece by piece: each task keeps one in the second-level cache and is the only one to read it. Rows of `x` that
//! few panels are multiplied with are not packed: it would cost more than it saves.
//!
//! What a tile is, and how its operands are packed, is an [`Engine`]'s affair.

mod floats;
#[cfg(target_arch = "x86_64")]
mod matrices;

use std::ops::Range;

use super::{
    cpu::{Call, Layer, Order, Product},
    microkernel::Ahead,
};
#[cfg(target_arch = "x86_64")]
use crate::simd;
use crate::{
    parts::Parts,
    pool::{self, Disjoint},
    scratch::with_scratch,
    simd::Simd,
};

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
    packing: Packing,
    /// Groups of steps along K that are packed at once.
    slices: Parts,
    /// Rows of `x` that share a tile.
    blocks: Parts,
    /// All panels.
    spans: Vec<Span<'a>>,
    panels: usize,
    /// What is packed once.
    shared: Operand,
    /// Whether `x` is not packed, but read where it lies.
    in_place: bool,
    threads: usize,
}

/// What an engine's tiles are, how much room their packed operands take, and how much is packed at once.
#[derive(Clone, Copy)]
struct Packing {
    /// The most rows of `x` in a tile.
    rows: usize,
    /// Columns of a tile, and of a panel of weights.
    columns: usize,
    /// Steps that are packed together; a last group that is not full is filled up with zeros.
    group: usize,
    /// Floats per step of a block of `x`; of a panel.
    block: usize,
    panel: usize,
    /// Whether rows of `x` may be read where they lie.
    reads_in_place: bool,
    /// Blocks of a transposed `x` that are packed side by side: a row of theirs fills some cache lines.
    column_blocks: usize,
    /// The most steps along K that are packed at once.
    depth: usize,
    /// The most packed floats that a task keeps: with what is streamed past them, they stay in the second-level cache.
    kept: usize,
    /// Packed floats of the streamed operand that the second-level cache holds beside them.
    near: usize,
    /// The fewest pieces per thread, where there is enough to be divided: so much of its time a thread may wait at the end.
    pieces: usize,
}

/// Multiplies tiles.
trait Engine: Copy {
    type Vectors: Simd;

    /// Its vectors, for what is done with the sums.
    fn vectors(self) -> Self::Vectors;

    /// Packs some steps of neighbouring blocks of `x`, block by block.
    fn pack_blocks(self, plan: &Plan<'_>, blocks: Range<usize>, steps: Range<usize>, to: &mut [f32]);

    /// Packs some steps of a span's weights, panel by panel, each by its [halves](Span::half).
    fn pack_span(self, plan: &Plan<'_>, span: &Span<'_>, steps: Range<usize>, to: &mut [f32]);

    /// Whether sums of so many columns can be made where the results are.
    fn fits(self, columns: usize) -> bool;

    /// Makes a tile.
    ///
    /// # Safety
    /// All that the piece describes must be readable, its sums writable.
    unsafe fn multiply(self, plan: &Plan<'_>, piece: &Piece);
}

/// That the machine has an engine's instructions.
trait Proof {
    type Engine: Engine;

    fn engine(self, plan: &Plan<'_>) -> Self::Engine;
}

#[inline(always)]
fn blocks_with<P: Proof>(
    proof: P,
    plan: &Plan<'_>,
    blocks: Range<usize>,
    steps: Range<usize>,
    to: &mut [f32],
) {
    proof.engine(plan).pack_blocks(plan, blocks, steps, to);
}

#[inline(always)]
fn span_with<P: Proof>(proof: P, plan: &Plan<'_>, span: &Span<'_>, steps: Range<usize>, to: &mut [f32]) {
    proof.engine(plan).pack_span(plan, span, steps, to);
}

/// The operands of a tile, and its sums.
struct Piece {
    rows: usize,
    /// Halves of its columns that are needed.
    halves: usize,
    steps: usize,
    /// A block of `x`, packed or in place.
    x: *const f32,
    panel: *const f32,
    /// With their stride.
    sums: (*mut f32, usize),
    /// Whether to add to the sums, else they are overwritten.
    adds: bool,
    /// What will be read and written next.
    ahead: [Ahead; 3],
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

impl<'a> Span<'a> {
    /// The layer and the first output of half a panel. With a gate, the left half of a panel is the gate's and the right half
    /// the other layer's; else they are neighbours.
    #[inline(always)]
    fn half(&self, half: usize, columns: usize) -> (&'a Layer<'a>, usize) {
        let column = self.column + half / 2 * panel_width(self.product, columns);
        match &self.product.gate {
            Some((gate, _)) if half.is_multiple_of(2) => (gate, column),
            Some(_) => (&self.product.layer, column),
            None => (&self.product.layer, column + half % 2 * (columns / 2)),
        }
    }
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
    #[cfg(target_arch = "x86_64")]
    if simd::level() == simd::Level::Amx {
        return run_with(call, matrices::packing(call), &matrices::ENTRY);
    }
    run_in_vectors(call);
}

/// The same without matrices: for few columns, their packing costs more than they save.
pub(super) fn run_in_vectors(call: &Call<'_>) {
    run_with(call, floats::packing(call), &floats::ENTRY);
}

/// An engine, entered with the instructions that it needs.
struct Entry {
    pack_blocks: fn(&Plan<'_>, Range<usize>, Range<usize>, &mut [f32]),
    pack_span: fn(&Plan<'_>, &Span<'_>, Range<usize>, &mut [f32]),
    multiply_task: fn(&Plan<'_>, &Task<'_>, &[f32], &mut [f32], &mut [f32]),
}

fn run_with(call: &Call<'_>, packing: Packing, engine: &Entry) {
    let plan = Plan::new(call, packing);
    if call.rows == 0 || plan.panels == 0 {
        return;
    }
    let tasks = plan.tasks();
    with_scratch(plan.packed(plan.shared, plan.count(plan.shared), call.inputs), |shared| {
        plan.pack_shared(engine, shared);
        let shared = &*shared;
        plan.for_each(tasks.len(), &|index| {
            let task = &tasks[index];
            let kept = match plan.shared {
                Operand::X => plan.packed(Operand::Weights, task.panels(), plan.longest_slice()),
                Operand::Weights => plan.packed(Operand::X, task.blocks.len(), plan.longest_slice()),
            };
            let sums = if plan.sums_are_results() { 0 } else { plan.sums(task.blocks.len() * task.panels()) };
            with_scratch(kept + sums, |scratch| {
                let (kept, sums) = scratch.split_at_mut(kept);
                (engine.multiply_task)(&plan, task, shared, kept, sums);
            });
        });
    });
}

impl<'a> Plan<'a> {
    fn new(call: &'a Call<'a>, packing: Packing) -> Self {
        let columns = packing.columns;
        let panels_of = |product: &Product<'_>| product.outputs.div_ceil(panel_width(product, columns));
        let outputs: usize =
            call.products.iter().map(|product| product.layers().count() * product.outputs).sum();
        let is_alone = call.rows * call.inputs * outputs <= ALONE;
        let panels = call.products.iter().map(panels_of).sum();
        let collide = call.x_stride.is_multiple_of(COLLIDING);
        let most_in_place = match packing.reads_in_place {
            true if call.x_order == Order::InputsFirst => 0,
            true if collide => COLLIDING_PANELS,
            true => IN_PLACE_PANELS,
            false => 0,
        };
        let mut plan = Self {
            call,
            packing,
            slices: Parts::at_most(packing.depth / packing.group, call.inputs.div_ceil(packing.group)),
            blocks: Parts::at_most(packing.rows, call.rows),
            spans: Vec::new(),
            panels,
            shared: if call.rows <= outputs { Operand::X } else { Operand::Weights },
            in_place: panels <= most_in_place,
            threads: if is_alone { 1 } else { pool::threads() },
        };
        let pieces = plan.pieces(Operand::Weights);
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

    /// Into how many pieces an operand is divided: evenly among the threads, so that all end at the same time.
    fn pieces(&self, operand: Operand) -> usize {
        let count = self.count(operand);
        let floats = self.packing.floats(operand) * self.longest_slice();
        let pieces = Parts::at_most(self.packing.kept / floats.max(1), count).count;
        match self.threads {
            1 => pieces,
            threads => pieces.max(threads * self.packing.pieces).next_multiple_of(threads).min(count.max(1)),
        }
    }

    fn tasks(&self) -> Vec<Task<'_>> {
        let (blocks, spans) = match self.shared {
            Operand::X => {
                let most = self.blocks.count.div_ceil(4);
                (self.parts(self.spans.len()).min(most), self.spans.len())
            }
            Operand::Weights => {
                let pieces = self.pieces(Operand::X);
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

    /// Blocks or panels.
    fn count(&self, operand: Operand) -> usize {
        match operand {
            Operand::X => self.blocks.count,
            Operand::Weights => self.panels,
        }
    }

    /// The steps of all slices.
    fn steps(&self) -> impl Iterator<Item = Range<usize>> {
        let (group, end) = (self.packing.group, self.call.inputs);
        self.slices.ranges().map(move |groups| groups.start * group..(groups.end * group).min(end))
    }

    /// Steps of the longest slice, filled up.
    fn longest_slice(&self) -> usize {
        self.slices.largest() * self.packing.group
    }

    /// Floats that some steps of so many blocks or panels take.
    #[inline(always)]
    fn packed(&self, operand: Operand, count: usize, steps: usize) -> usize {
        if operand == Operand::X && self.in_place {
            return 0;
        }
        count * self.packing.floats(operand) * steps.next_multiple_of(self.packing.group)
    }

    /// Floats of the sums of so many tiles.
    #[inline(always)]
    fn sums(&self, tiles: usize) -> usize {
        tiles * self.packing.rows * self.packing.columns
    }

    /// Whether all sums are made where the results are.
    fn sums_are_results(&self) -> bool {
        let is_whole = |product: &Product<'_>| product.outputs.is_multiple_of(self.packing.columns);
        self.call.products.iter().all(|product| product.is_plain() && is_whole(product))
    }

    /// Runs tasks here, or spread over the pool.
    fn for_each(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if self.threads == 1 { (0..tasks).for_each(task) } else { pool::for_each(tasks, task) }
    }

    /// Packs all of the shared operand, slice after slice.
    fn pack_shared(&self, engine: &Entry, to: &mut [f32]) {
        let all = self.count(self.shared);
        let to = Disjoint::new(to);
        match self.shared {
            Operand::X if self.in_place => {}
            Operand::X => {
                let most =
                    if self.call.x_order == Order::InputsLast { 1 } else { self.packing.column_blocks };
                let pieces = Parts::at_most(most, self.blocks.count);
                self.for_each(pieces.count, &|piece| {
                    let blocks = pieces.range(piece);
                    for steps in self.steps() {
                        let start = self.packed(Operand::X, all, steps.start)
                            + self.packed(Operand::X, blocks.start, steps.len());
                        let count = self.packed(Operand::X, blocks.len(), steps.len());
                        // SAFETY: the blocks do not overlap.
                        (engine.pack_blocks)(self, blocks.clone(), steps, unsafe { to.part(start, count) });
                    }
                });
            }
            Operand::Weights => self.for_each(self.spans.len(), &|index| {
                let span = &self.spans[index];
                for steps in self.steps() {
                    let start = self.packed(Operand::Weights, all, steps.start)
                        + self.packed(Operand::Weights, span.first_panel, steps.len());
                    let count = self.packed(Operand::Weights, span.panels, steps.len());
                    // SAFETY: the spans do not overlap.
                    (engine.pack_span)(self, span, steps, unsafe { to.part(start, count) });
                }
            }),
        }
    }
}

impl Packing {
    /// Floats per step of a block or a panel.
    #[inline(always)]
    fn floats(&self, operand: Operand) -> usize {
        match operand {
            Operand::X => self.block,
            Operand::Weights => self.panel,
        }
    }
}

/// Outputs of a panel: with a gate, half of its columns belong to the gate.
#[inline(always)]
fn panel_width(product: &Product<'_>, columns: usize) -> usize {
    if product.gate.is_some() { columns / 2 } else { columns }
}

/// Slice by slice, packs the task's piece of the larger operand and multiplies it.
#[inline(always)]
fn task_with<P: Proof>(
    proof: P,
    plan: &Plan<'_>,
    task: &Task<'_>,
    shared: &[f32],
    kept: &mut [f32],
    sums: &mut [f32],
) {
    let engine = proof.engine(plan);
    for steps in plan.steps() {
        let all = plan.count(plan.shared);
        let start = plan.packed(plan.shared, all, steps.start);
        let shared = &shared[start..][..plan.packed(plan.shared, all, steps.len())];
        let first_panel = task.spans[0].first_panel;
        let slice = match plan.shared {
            Operand::X => {
                for span in task.spans {
                    let before = span.first_panel - first_panel;
                    let to = &mut kept[plan.packed(Operand::Weights, before, steps.len())..];
                    engine.pack_span(plan, span, steps.clone(), to);
                }
                Slice { steps, x: shared, first_block: 0, weights: kept, first_panel }
            }
            Operand::Weights => {
                if !plan.in_place {
                    engine.pack_blocks(plan, task.blocks.clone(), steps.clone(), kept);
                }
                Slice { steps, x: kept, first_block: task.blocks.start, weights: shared, first_panel: 0 }
            }
        };
        for span in task.spans {
            multiply_span(engine, plan, task, span, &slice, sums);
        }
    }
}

/// Some steps of both operands, packed.
struct Slice<'a> {
    steps: Range<usize>,
    /// Block by block from `first_block` on, if they are packed.
    x: &'a [f32],
    first_block: usize,
    /// Panel by panel from `first_panel` on.
    weights: &'a [f32],
    first_panel: usize,
}

impl Slice<'_> {
    #[inline(always)]
    fn block(&self, plan: &Plan<'_>, block: usize) -> *const f32 {
        if plan.in_place {
            let start = plan.blocks.start(block) * plan.call.x_stride + self.steps.start;
            plan.call.x.as_ptr().wrapping_add(start)
        } else {
            let before = plan.packed(Operand::X, block - self.first_block, self.steps.len());
            self.x.as_ptr().wrapping_add(before)
        }
    }

    /// A panel, counted through all products.
    #[inline(always)]
    fn panel(&self, plan: &Plan<'_>, panel: usize) -> *const f32 {
        let before = plan.packed(Operand::Weights, panel - self.first_panel, self.steps.len());
        self.weights.as_ptr().wrapping_add(before)
    }
}

/// Adds a slice's products of the task's blocks and a span; writes results after the last slice.
#[inline(always)]
fn multiply_span<E: Engine>(
    engine: E,
    plan: &Plan<'_>,
    task: &Task<'_>,
    span: &Span<'_>,
    slice: &Slice<'_>,
    sums: &mut [f32],
) {
    let count = slice.steps.len();
    if plan.in_place {
        let end_row = plan.blocks.start(task.blocks.end);
        assert!(plan.call.x.len() >= (end_row - 1) * plan.call.x_stride + slice.steps.end);
    }
    assert!(slice.x.len() >= plan.packed(Operand::X, task.blocks.end - slice.first_block, count));
    let end_panel = span.first_panel - slice.first_panel + span.panels;
    assert!(slice.weights.len() >= plan.packed(Operand::Weights, end_panel, count));
    assert!(plan.sums_are_results() || sums.len() >= plan.sums(task.blocks.len() * task.panels()));
    // What is kept is gone through again and again, the rest once.
    let (streamed, kept) = match plan.shared {
        Operand::X => (task.blocks.len(), span.panels),
        Operand::Weights => (span.panels, task.blocks.len()),
    };
    for outer in 0..streamed {
        for inner in 0..kept {
            let place = if plan.shared == Operand::X { (outer, inner) } else { (inner, outer) };
            // SAFETY: the lengths were checked above; tasks have columns or rows of their own.
            unsafe { multiply_tile(engine, plan, task, span, slice, place, sums.as_mut_ptr()) };
        }
    }
}

/// The same for a block of the task and a panel of the span.
///
/// # Safety
/// The slice must hold both, and `sums` have room for the task's, unless all of them are results. Nobody else may touch
/// the results.
#[inline(always)]
unsafe fn multiply_tile<E: Engine>(
    engine: E,
    plan: &Plan<'_>,
    task: &Task<'_>,
    span: &Span<'_>,
    slice: &Slice<'_>,
    (block, panel): (usize, usize),
    sums: *mut f32,
) {
    let (product, columns, count) = (span.product, plan.packing.columns, slice.steps.len());
    let (is_first, is_last) = (slice.steps.start == 0, slice.steps.end == plan.call.inputs);
    let rows = plan.blocks.range(task.blocks.start + block);
    let width = panel_width(product, columns);
    let column = span.column + panel * width;
    let width = width.min(span.columns - panel * width);
    let x = slice.block(plan, task.blocks.start + block);
    let weights = slice.panel(plan, span.first_panel + panel);

    let is_far = count * plan.count(plan.shared) * plan.packing.floats(plan.shared) > plan.packing.near;
    let following = match plan.shared {
        _ if !is_far => Ahead::NOTHING,
        // Pieces of rows do not lie side by side.
        Operand::X if plan.in_place && count < plan.call.x_stride => Ahead::NOTHING,
        Operand::X => {
            let floats = if plan.in_place { rows.len() * count } else { plan.packed(Operand::X, 1, count) };
            Ahead::share(x.wrapping_add(floats), floats, (panel, span.panels))
        }
        Operand::Weights => {
            let floats = plan.packed(Operand::Weights, 1, count);
            Ahead::share(weights.wrapping_add(floats), floats, (block, task.blocks.len()))
        }
    };
    let (result, result_stride) = product.place(rows.start, column);
    let is_result = product.is_plain() && engine.fits(width);
    let mut ahead = [Ahead::NOTHING, Ahead::NOTHING, following];
    if is_result || is_last {
        ahead[0] = Ahead::rows(result, result_stride, rows.len());
        ahead[1] = Ahead::rows(result.wrapping_add(width - 1), result_stride, rows.len());
    }
    let (c, adds) = if is_result {
        ((result, result_stride), product.adds || !is_first)
    } else {
        let before = block * task.panels() + span.first_panel + panel - task.spans[0].first_panel;
        ((sums.wrapping_add(plan.sums(before)), columns), !is_first)
    };
    let halves = if product.gate.is_some() { 2 } else { width.div_ceil(columns / 2) };
    let piece = Piece { rows: rows.len(), halves, steps: count, x, panel: weights, sums: c, adds, ahead };
    // SAFETY: the caller's promises.
    unsafe {
        engine.multiply(plan, &piece);
        if is_last && !is_result {
            for (index, row) in rows.enumerate() {
                let left = c.0.add(index * columns).cast_const();
                let values = if product.gate.is_some() { left.add(columns / 2) } else { left };
                product.finish(engine.vectors(), (left, values), row, column, width);
            }
        }
    }
}
