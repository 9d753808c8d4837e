//! Operands in the order in which tiles read them.

use std::ops::Range;

use super::{Operand, Plan, Span, panel_width};
use crate::{
    linear::{
        cpu::{Call, Layer, Order},
        microkernel::{CACHE_LINE, pack, tile_columns},
    },
    parts::Parts,
    pool::Disjoint,
    simd::{Element, Simd, dispatch},
    view::Floats,
};

/// Blocks of a transposed `x` that are packed side by side: a row of theirs fills some cache lines.
const COLUMN_BLOCKS: usize = 8;

/// How many steps before its use a number is fetched, where steps lie far apart in memory: in other pages, beyond what
/// the hardware fetches by itself.
const STEPS_AHEAD: usize = 8;

/// Packs all of the shared operand, slice after slice.
pub(super) fn pack_shared(plan: &Plan<'_>, to: &mut [f32]) {
    let width = plan.width(plan.shared);
    let to = Disjoint::new(to);
    match plan.shared {
        Operand::X if plan.in_place => {}
        Operand::X => {
            let most = if plan.call.x_order == Order::InputsLast { 1 } else { COLUMN_BLOCKS };
            let pieces = Parts::at_most(most, plan.blocks.count);
            plan.for_each(pieces.count, &|piece| {
                let blocks = pieces.range(piece);
                let (first, end) = (plan.blocks.start(blocks.start), plan.blocks.start(blocks.end));
                for steps in plan.slices.ranges() {
                    let (start, count) =
                        (steps.start * width + first * steps.len(), (end - first) * steps.len());
                    // SAFETY: the blocks do not overlap.
                    pack_piece(plan, blocks.clone(), steps, unsafe { to.part(start, count) });
                }
            });
        }
        Operand::Weights => plan.for_each(plan.spans.len(), &|index| {
            let span = &plan.spans[index];
            for steps in plan.slices.ranges() {
                let columns = steps.len() * plan.columns;
                let (start, count) =
                    (steps.start * width + span.first_panel * columns, span.panels * columns);
                // SAFETY: the spans do not overlap.
                pack_panels(plan.call, span, steps, unsafe { to.part(start, count) });
            }
        }),
    }
}

dispatch! {
    fn pack_piece(plan: &Plan<'_>, blocks: Range<usize>, steps: Range<usize>, to: &mut [f32]) = pack_blocks;

    fn pack_panels(call: &Call<'_>, span: &Span<'_>, steps: Range<usize>, to: &mut [f32]) = pack_span;
}

/// Packs some steps of some blocks of `x`: `[steps, rows of the block]` each.
#[inline(always)]
pub(super) fn pack_blocks<S: Simd>(
    simd: S,
    plan: &Plan<'_>,
    blocks: Range<usize>,
    steps: Range<usize>,
    to: &mut [f32],
) {
    let (call, first) = (plan.call, plan.blocks.start(blocks.start));
    let count = steps.len();
    match call.x_order {
        Order::InputsLast if count > 0 => {
            for block in blocks {
                let rows = plan.blocks.range(block);
                let x = &call.x[rows.start * call.x_stride + steps.start..];
                let x = &x[..(rows.len() - 1) * call.x_stride + count];
                let to = &mut to[(rows.start - first) * count..][..rows.len() * count];
                // SAFETY: `x` holds the block's rows, no more than a vector's lanes; `to` has room for them.
                unsafe {
                    pack(simd, x.as_ptr(), call.x_stride, rows.len(), count, to.as_mut_ptr(), rows.len());
                }
            }
        }
        Order::InputsLast => {}
        Order::InputsFirst => {
            for start in blocks.clone().step_by(COLUMN_BLOCKS) {
                let blocks = start..blocks.end.min(start + COLUMN_BLOCKS);
                let to = &mut to[(plan.blocks.start(start) - first) * count..];
                pack_columns(simd, plan, blocks, steps.clone(), to);
            }
        }
    }
}

/// The same for an `x` whose rows are columns in memory, up to [`COLUMN_BLOCKS`] side by side.
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
    let to = &mut to[..(end - first) * count];
    for (step, input) in steps.enumerate() {
        let x = &call.x[input * call.x_stride..][..end];
        let ahead = x.as_ptr().wrapping_add(STEPS_AHEAD * call.x_stride);
        (first..end).step_by(CACHE_LINE).for_each(|row| simd.prefetch(ahead.wrapping_add(row)));
        for edges in starts.windows(2) {
            let (row, rows) = (edges[0], edges[1] - edges[0]);
            let from = &x[row..row + rows];
            let to = &mut to[(row - first) * count + step * rows..][..rows];
            // SAFETY: both slices hold the block's rows, which are no more than a vector's lanes.
            unsafe { simd.store_first(to.as_mut_ptr(), simd.load_first(from.as_ptr(), rows), rows) };
        }
    }
}

/// Packs some steps of a span's weights, panel by panel. With a gate, the left half of a panel is the gate's and the
/// right half the other layer's; else they are neighbours.
#[inline(always)]
pub(super) fn pack_span<S: Simd>(
    simd: S,
    call: &Call<'_>,
    span: &Span<'_>,
    steps: Range<usize>,
    to: &mut [f32],
) {
    match (span.product.layer.order, span.product.layer.weight) {
        (Order::InputsLast, _) => pack_outputs(simd, call, span, steps, to),
        (Order::InputsFirst, Floats::F32(w)) => pack_steps(simd, w, span, steps, to),
        (Order::InputsFirst, Floats::Bf16(w)) => pack_steps(simd, w, span, steps, to),
        (Order::InputsFirst, Floats::F16(w)) => pack_steps(simd, w, span, steps, to),
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
    let width = panel_width(product, stride);
    assert!(packed.len() >= span.panels * count * stride && steps.end <= call.inputs);
    for half in 0..2 * span.panels {
        let column = span.column + half / 2 * width;
        let (layer, column): (&Layer<'_>, usize) = match &product.gate {
            Some((gate, _)) if half % 2 == 0 => (gate, column),
            Some(_) => (&product.layer, column),
            None => (&product.layer, column + half % 2 * S::LANES),
        };
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
