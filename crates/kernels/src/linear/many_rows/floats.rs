//! Tiles of vectors: operands are widened to `f32`.

use std::ops::Range;

use super::{
    Engine, Entry, Operand, Packing, Piece, Plan, Proof, Span, Task, blocks_with, span_with, task_with,
};
use crate::{
    linear::{
        cpu::{Call, Order},
        microkernel::{CACHE_LINE, Packed, Rows, Tile, multiply_ahead, pack, tile, tile_columns},
    },
    parts::Parts,
    simd::{Element, Simd, dispatch},
    view::Floats,
};

/// The most steps along K that are packed at once.
const DEPTH: usize = 2048;

/// The most packed numbers that a task keeps, half a megabyte.
const KEPT: usize = 1 << 17;

/// Blocks of a transposed `x` that are packed side by side.
const COLUMN_BLOCKS: usize = 8;

/// How many steps before its use a number is fetched, where steps lie far apart in memory: in other pages, beyond what
/// the hardware fetches by itself.
const STEPS_AHEAD: usize = 8;

/// Tiles of vectors, whose operands are packed as numbers in the order in which tiles read them.
#[derive(Clone, Copy)]
pub(super) struct Tiles<S>(S);

pub(super) const ENTRY: Entry = Entry { pack_blocks, pack_span, multiply_task };

/// How a call's operands are packed.
pub(super) fn packing(call: &Call<'_>) -> Packing {
    let (rows, columns) = tile();
    Packing {
        rows,
        columns,
        group: 1,
        block: Parts::at_most(rows, call.rows).largest(),
        panel: columns,
        reads_in_place: true,
        column_blocks: COLUMN_BLOCKS,
        depth: DEPTH,
        kept: KEPT,
        near: 2 * KEPT,
        pieces: 7,
    }
}

dispatch! {
    fn pack_blocks(plan: &Plan<'_>, blocks: Range<usize>, steps: Range<usize>, to: &mut [f32]) = blocks_with;

    fn pack_span(plan: &Plan<'_>, span: &Span<'_>, steps: Range<usize>, to: &mut [f32]) = span_with;

    fn multiply_task(
        plan: &Plan<'_>, task: &Task<'_>, shared: &[f32], kept: &mut [f32], sums: &mut [f32],
    ) = task_with;
}

impl<S: Simd> Proof for S {
    type Engine = Tiles<S>;

    #[inline(always)]
    fn engine(self, _: &Plan<'_>) -> Tiles<S> {
        Tiles(self)
    }
}

impl<S: Simd> Engine for Tiles<S> {
    type Vectors = S;

    #[inline(always)]
    fn vectors(self) -> S {
        self.0
    }

    /// `[steps, rows of the block]` each.
    #[inline(always)]
    fn pack_blocks(self, plan: &Plan<'_>, blocks: Range<usize>, steps: Range<usize>, to: &mut [f32]) {
        let (call, count) = (plan.call, steps.len());
        match call.x_order {
            Order::InputsLast if count > 0 => {
                for (index, block) in blocks.enumerate() {
                    let rows = plan.blocks.range(block);
                    let x = &call.x[rows.start * call.x_stride + steps.start..];
                    let x = &x[..(rows.len() - 1) * call.x_stride + count];
                    let to = &mut to[plan.packed(Operand::X, index, count)..][..rows.len() * count];
                    // SAFETY: `x` holds the block's rows, no more than a vector's lanes; `to` has room for them.
                    unsafe {
                        let (from, to) = (x.as_ptr(), to.as_mut_ptr());
                        pack(self.0, from, call.x_stride, rows.len(), count, to, rows.len());
                    }
                }
            }
            Order::InputsLast => {}
            Order::InputsFirst => {
                for start in blocks.clone().step_by(COLUMN_BLOCKS) {
                    let to = &mut to[plan.packed(Operand::X, start - blocks.start, count)..];
                    let blocks = start..blocks.end.min(start + COLUMN_BLOCKS);
                    pack_columns(self.0, plan, blocks, steps.clone(), to);
                }
            }
        }
    }

    #[inline(always)]
    fn pack_span(self, plan: &Plan<'_>, span: &Span<'_>, steps: Range<usize>, to: &mut [f32]) {
        match (span.product.layer.order, span.product.layer.weight) {
            (Order::InputsLast, _) => pack_outputs(self.0, plan.call, span, steps, to),
            (Order::InputsFirst, Floats::F32(w)) => pack_steps(self.0, w, span, steps, to),
            (Order::InputsFirst, Floats::Bf16(w)) => pack_steps(self.0, w, span, steps, to),
            (Order::InputsFirst, Floats::F16(w)) => pack_steps(self.0, w, span, steps, to),
        }
    }

    #[inline(always)]
    fn fits(self, columns: usize) -> bool {
        columns.is_multiple_of(S::LANES)
    }

    #[inline(always)]
    unsafe fn multiply(self, plan: &Plan<'_>, piece: &Piece) {
        let &Piece { rows, halves: vectors, steps: depth, x, panel, sums: c, adds, ref ahead } = piece;
        let tile = Tile { rows, vectors, depth, b: (panel, plan.packing.columns), c, adds, ahead };
        // SAFETY: the caller's promises.
        unsafe {
            if plan.in_place {
                multiply_ahead(self.0, Rows::new(x, plan.call.x_stride), &tile);
            } else {
                multiply_ahead(self.0, Packed { start: x, rows }, &tile);
            }
        }
    }
}

/// Packs blocks of an `x` whose rows are columns in memory, up to [`COLUMN_BLOCKS`] side by side.
#[inline(always)]
fn pack_columns<S: Simd>(
    simd: S,
    plan: &Plan<'_>,
    blocks: Range<usize>,
    steps: Range<usize>,
    to: &mut [f32],
) {
    let (call, count) = (plan.call, steps.len());
    let mut starts = [0; COLUMN_BLOCKS + 1];
    for (start, block) in starts.iter_mut().zip(blocks.start..=blocks.end) {
        *start = plan.blocks.start(block);
    }
    let starts = &starts[..=blocks.len()];
    let (first, end) = (starts[0], starts[blocks.len()]);
    let to = &mut to[..plan.packed(Operand::X, blocks.len(), count)];
    for (step, input) in steps.enumerate() {
        let x = &call.x[input * call.x_stride..][..end];
        let ahead = x.as_ptr().wrapping_add(STEPS_AHEAD * call.x_stride);
        (first..end).step_by(CACHE_LINE).for_each(|row| simd.prefetch(ahead.wrapping_add(row)));
        for (index, edges) in starts.windows(2).enumerate() {
            let (row, rows) = (edges[0], edges[1] - edges[0]);
            let from = &x[row..row + rows];
            let to = &mut to[plan.packed(Operand::X, index, count) + step * rows..][..rows];
            // SAFETY: both slices hold the block's rows, which are no more than a vector's lanes.
            unsafe { simd.store_first(to.as_mut_ptr(), simd.load_first(from.as_ptr(), rows), rows) };
        }
    }
}

/// From a weight `[inputs, outputs]`: each step is widened for all panels at once, which reads memory in order.
#[inline(always)]
fn pack_steps<S: Simd, W: Element>(
    simd: S,
    weight: &[W],
    span: &Span<'_>,
    steps: Range<usize>,
    packed: &mut [f32],
) {
    let (outputs, stride, count) = (span.product.outputs, tile_columns::<S>(), steps.len());
    assert!(span.product.gate.is_none() && packed.len() >= span.panels * count * stride);
    for (step, input) in steps.enumerate() {
        let row = &weight[input * outputs + span.column..][..span.columns];
        let ahead = row.as_ptr().wrapping_add(STEPS_AHEAD * outputs);
        let mut to = packed[step * stride..].as_mut_ptr();
        for column in (0..span.columns).step_by(stride) {
            let from = row.as_ptr().wrapping_add(column);
            simd.prefetch(ahead.wrapping_add(column));
            simd.prefetch(ahead.wrapping_add(column + S::LANES));
            // SAFETY: the row has the columns that are loaded; the panels were checked above.
            unsafe {
                let [left, right] = if column + stride <= span.columns {
                    [W::load(simd, from), W::load(simd, from.add(S::LANES))]
                } else {
                    let width = span.columns - column;
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
fn pack_outputs<S: Simd>(simd: S, call: &Call<'_>, span: &Span<'_>, steps: Range<usize>, packed: &mut [f32]) {
    let (product, count) = (span.product, steps.len());
    let stride = tile_columns::<S>();
    assert!(packed.len() >= span.panels * count * stride && steps.end <= call.inputs);
    for half in 0..2 * span.panels {
        let (layer, column) = span.half(half, stride);
        let rows = product.outputs.saturating_sub(column).min(S::LANES);
        let offset = column.min(product.outputs) * call.inputs + steps.start;
        let to = packed.as_mut_ptr().wrapping_add(half / 2 * count * stride + half % 2 * S::LANES);
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
