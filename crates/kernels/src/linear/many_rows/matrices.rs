//! Tiles of AMX: operands are split into parts of bf16.

use std::ops::Range;

use super::{Engine, Entry, Operand, Packing, Piece, Plan, Span, Task, panel_width, task_with};
use crate::{
    linear::{
        cpu::{Call, Layer, Order, Product as Layers},
        split::{self, PART, Source, TILE, parts},
    },
    simd::{
        Avx512,
        amx::{self, PARTS, Product, REGISTER, Registers, SIDE, STEPS},
    },
};

/// The most steps along K that are packed at once.
const DEPTH: usize = 1024;

/// The most packed floats that a task keeps, a megabyte: AMX is so fast that what is streamed past them has to be read seldom.
const KEPT: usize = 1 << 18;

#[derive(Clone, Copy)]
struct Tiles<'a> {
    vectors: Avx512,
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
        block: PARTS * PART,
        panel: weights.max().unwrap_or(1) * PART,
        reads_in_place: false,
        only_whole: true,
        column_blocks: 1,
        depth: DEPTH,
        kept: KEPT,
        near: KEPT,
        pieces: 3,
    }
}

/// Makes the functions that do a part of the work with the instructions that it needs.
macro_rules! enter {
    ($($name:ident($($argument:ident: $kind:ty),+) = $run:path;)+) => {
        $(fn $name(plan: &Plan<'_>, $($argument: $kind),+) {
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
            unsafe fn with_features(tiles: Tiles<'_>, plan: &Plan<'_>, $($argument: $kind),+) {
                $run(tiles, plan, $($argument),+);
            }
            // SAFETY: such a plan is made only where the level is in use, so there are the instructions.
            unsafe {
                let registers = &Registers::set_up();
                let tiles = Tiles { vectors: Avx512::assume(), registers, parts: plan.packing.panel / PART };
                with_features(tiles, plan, $($argument),+);
            }
        })+
    };
}

enter! {
    pack_blocks(blocks: Range<usize>, steps: Range<usize>, to: &mut [f32]) = Engine::pack_blocks;
    pack_span(span: &Span<'_>, steps: Range<usize>, to: &mut [f32]) = Engine::pack_span;
    multiply_task(task: &Task<'_>, shared: &[f32], kept: &mut [f32], sums: &mut [f32]) = task_with;
}

impl Engine for Tiles<'_> {
    type Vectors = Avx512;

    #[inline(always)]
    fn vectors(self) -> Avx512 {
        self.vectors
    }

    #[inline(always)]
    fn pack_blocks(self, plan: &Plan<'_>, blocks: Range<usize>, steps: Range<usize>, to: &mut [f32]) {
        let call = plan.call;
        assert!(to.len() >= plan.packed(Operand::X, blocks.len(), steps.len()));
        for (index, block) in blocks.enumerate() {
            let rows = plan.blocks.range(block);
            let to = &mut to[plan.packed(Operand::X, index, steps.len())..];
            // SAFETY: all groups have room.
            unsafe {
                split::pack_rows(
                    self.vectors,
                    (call.x, call.x_order, call.x_stride),
                    rows,
                    steps.clone(),
                    to.as_mut_ptr(),
                );
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
    fn fits(self, rows: usize, columns: usize) -> bool {
        rows == TILE && columns == TILE
    }

    #[inline(always)]
    unsafe fn multiply(self, _: &Plan<'_>, piece: &Piece) {
        let &Piece { steps, x, panel, sums, adds, ahead: [.., following], .. } = piece;
        let groups = steps.div_ceil(STEPS);
        let product = Product { x, panel, groups, sums, adds, ahead: following.in_rounds(groups) };
        // SAFETY: the caller's promises.
        unsafe { amx::multiply(self.registers, self.parts, product) }
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
        let product = span.product;
        let column = span.column + half / 2 * panel_width(product, TILE);
        let (layer, column): (&Layer<'_>, usize) = match &product.gate {
            Some((gate, _)) if half.is_multiple_of(2) => (gate, column),
            Some(_) => (&product.layer, column),
            None => (&product.layer, column + half % 2 * SIDE),
        };
        let source = Source {
            order: layer.order,
            stride: if layer.order == Order::InputsLast { plan.call.inputs } else { product.outputs },
            lines: column.min(product.outputs)..(column + SIDE).min(product.outputs),
            steps,
        };
        let to = to.wrapping_add(half % 2 * REGISTER);
        // SAFETY: the caller's promise.
        unsafe { source.pack_weights(self.vectors, &layer.weight, to, self.parts) };
    }
}
