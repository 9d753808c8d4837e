//! Tiles of AMX: operands are split into parts of bf16.

use std::ops::Range;

use super::{
    Engine, Entry, Operand, Packing, Piece, Plan, Proof, Span, Task, blocks_with, span_with, task_with,
};
use crate::{
    linear::{
        cpu::{Call, Order, Product as Layers},
        split::{self, BLOCK, PART, Source, parts},
    },
    simd::{
        Avx512,
        amx::{self, Product, REGISTER, Registers, SIDE, STEPS, TILE},
    },
};

/// The most steps along K that are packed at once.
const DEPTH: usize = 1024;

/// The most packed floats that a task keeps, a megabyte: AMX is so fast that what is streamed past them has to be read seldom.
const KEPT: usize = 1 << 18;

#[derive(Clone, Copy)]
pub(super) struct Tiles<'a> {
    registers: &'a Registers,
    /// Parts of a weight.
    parts: usize,
}

pub(super) const ENTRY: Entry = Entry { pack_blocks, pack_span, multiply_task };

/// How a call's operands are packed.
pub(super) fn packing(call: &Call<'_>) -> Packing {
    let weights = call.products.iter().flat_map(Layers::layers).map(|layer| parts(&layer.weight));
    Packing {
        rows: TILE,
        columns: TILE,
        group: STEPS,
        block: BLOCK,
        panel: weights.max().unwrap_or(1) * PART,
        reads_in_place: false,
        column_blocks: 1,
        depth: DEPTH,
        kept: KEPT,
        near: KEPT,
        pieces: 3,
    }
}

amx::enter! {
    fn pack_blocks(plan: &Plan<'_>, blocks: Range<usize>, steps: Range<usize>, to: &mut [f32]) = blocks_with;

    fn pack_span(plan: &Plan<'_>, span: &Span<'_>, steps: Range<usize>, to: &mut [f32]) = span_with;

    fn multiply_task(
        plan: &Plan<'_>, task: &Task<'_>, shared: &[f32], kept: &mut [f32], sums: &mut [f32],
    ) = task_with;
}

impl<'a> Proof for &'a Registers {
    type Engine = Tiles<'a>;

    #[inline(always)]
    fn engine(self, plan: &Plan<'_>) -> Tiles<'a> {
        Tiles { registers: self, parts: plan.packing.panel / PART }
    }
}

impl Engine for Tiles<'_> {
    type Vectors = Avx512;

    #[inline(always)]
    fn vectors(self) -> Avx512 {
        self.registers.vectors()
    }

    #[inline(always)]
    fn pack_blocks(self, plan: &Plan<'_>, blocks: Range<usize>, steps: Range<usize>, to: &mut [f32]) {
        let call = plan.call;
        assert!(to.len() >= plan.packed(Operand::X, blocks.len(), steps.len()));
        for (index, block) in blocks.enumerate() {
            let x = (call.x, call.x_order, call.x_stride);
            let to = &mut to[plan.packed(Operand::X, index, steps.len())..];
            // SAFETY: all groups have room.
            unsafe {
                let to = to.as_mut_ptr();
                split::pack_rows(self.vectors(), x, plan.blocks.range(block), steps.clone(), to);
            }
        }
    }

    #[inline(always)]
    fn pack_span(self, plan: &Plan<'_>, span: &Span<'_>, steps: Range<usize>, to: &mut [f32]) {
        assert!(to.len() >= plan.packed(Operand::Weights, span.panels, steps.len()));
        // A weight `[inputs, outputs]` is read row by row: some rows of all panels at once.
        let rows = match span.product.layer.order {
            Order::InputsLast => steps.len(),
            Order::InputsFirst => STEPS,
        };
        for start in steps.clone().step_by(rows.max(1)) {
            let rows = start..(start + rows).min(steps.end);
            for half in 0..2 * span.panels {
                let before = plan.packed(Operand::Weights, half / 2, steps.len());
                let to = &mut to[before + (start - steps.start) * plan.packing.panel..];
                // SAFETY: all groups have room.
                unsafe { self.pack_half(plan, span, half, rows.clone(), to.as_mut_ptr()) };
            }
        }
    }

    #[inline(always)]
    fn fits(self, columns: usize) -> bool {
        columns.is_multiple_of(TILE)
    }

    #[inline(always)]
    unsafe fn multiply(self, _: &Plan<'_>, piece: &Piece) {
        let &Piece { rows, steps, x, panel, sums, adds, ahead: [.., following], .. } = piece;
        let (parts, groups) = (self.parts, steps.div_ceil(STEPS));
        let ahead = following.in_rounds(groups);
        // SAFETY: the caller's promises.
        unsafe { self.registers.multiply(&Product { rows, x, panel, parts, groups, sums, adds, ahead }) }
    }
}

impl Tiles<'_> {
    /// Packs some steps of half a panel, where the panel's are to begin.
    ///
    /// # Safety
    /// There must be room for the panel's.
    #[inline(always)]
    unsafe fn pack_half(
        self,
        plan: &Plan<'_>,
        span: &Span<'_>,
        half: usize,
        steps: Range<usize>,
        to: *mut f32,
    ) {
        let outputs = span.product.outputs;
        let (layer, column) = span.half(half, TILE);
        let source = Source {
            order: layer.order,
            stride: if layer.order == Order::InputsLast { plan.call.inputs } else { outputs },
            lines: column.min(outputs)..(column + SIDE).min(outputs),
            steps,
        };
        let to = to.wrapping_add(half % 2 * REGISTER);
        // SAFETY: the caller's promise.
        unsafe { source.pack_weights(self.vectors(), &layer.weight, to, self.parts) };
    }
}
