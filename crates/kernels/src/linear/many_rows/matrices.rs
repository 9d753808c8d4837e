//! Tiles of AMX: operands are split into parts of bf16.

use std::ops::Range;

use super::{Engine, Entry, Operand, Packing, Piece, Plan, Span, Task, panel_width, task_with};
use crate::{
    linear::cpu::{Call, Layer, Order, Product as Layers},
    simd::{
        Avx512, Element, Simd,
        amx::{self, PARTS, Product, REGISTER, Registers, SIDE, STEPS},
    },
    view::Floats,
};

/// Rows and columns of a tile: two registers each.
const TILE: usize = 2 * SIDE;

/// Floats of a step that a part of a block or of a panel takes.
const PART: usize = 2 * REGISTER / STEPS;

/// The most steps along K that are packed at once.
const DEPTH: usize = 1024;

/// The most packed floats that a task keeps, a megabyte: AMX is so fast that what is streamed past them has to be read seldom.
const KEPT: usize = 1 << 18;

/// How many groups of steps before its use a number is fetched, where a row's follow each other.
const GROUPS_AHEAD: usize = 8;

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

/// Parts of bf16 that hold all digits.
fn parts(weight: &Floats<'_>) -> usize {
    match weight {
        Floats::F32(_) => PARTS,
        Floats::F16(_) => 2,
        Floats::Bf16(_) => 1,
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
            for half in 0..2 {
                let start = rows.start + half * SIDE;
                let source = Source {
                    order: call.x_order,
                    stride: call.x_stride,
                    lines: start.min(rows.end)..(start + SIDE).min(rows.end),
                    steps: steps.clone(),
                };
                let to = to.as_mut_ptr().wrapping_add(half * REGISTER);
                // SAFETY: all groups have room.
                unsafe { source.pack::<_, PARTS>(self.vectors, call.x, Order::InputsLast, to, PARTS) };
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
        let (simd, order) = (self.vectors, Order::InputsFirst);
        // SAFETY: the caller's promise.
        unsafe {
            match layer.weight {
                Floats::Bf16(numbers) => source.pack::<_, 1>(simd, numbers, order, to, self.parts),
                Floats::F16(numbers) => source.pack::<_, 2>(simd, numbers, order, to, self.parts),
                Floats::F32(numbers) => source.pack::<_, 3>(simd, numbers, order, to, self.parts),
            }
        }
    }
}

/// Up to 16 rows of `x`, or outputs of a weight, and some of their steps.
struct Source {
    order: Order,
    /// From a row, as they lie in memory, to the next.
    stride: usize,
    /// The rows or outputs.
    lines: Range<usize>,
    steps: Range<usize>,
}

impl Source {
    /// Packs them in registers' worths, [`STEPS`] steps each: row by row in one, or pair by pair of steps. A step's pair is the
    /// sixteenth after it. Of `room` parts, `COUNT` are not zero.
    ///
    /// # Safety
    /// From `to` on there must be room for a register of every second one's size, all groups and parts.
    #[inline(always)]
    unsafe fn pack<T: Element, const COUNT: usize>(
        &self,
        simd: Avx512,
        numbers: &[T],
        order: Order,
        to: *mut f32,
        room: usize,
    ) {
        let lines = self.lines.len();
        let end = match self.order {
            Order::InputsLast => self.lines.end.saturating_sub(1) * self.stride + self.steps.end,
            Order::InputsFirst => self.steps.end.saturating_sub(1) * self.stride + self.lines.end,
        };
        assert!(lines == 0 || self.steps.is_empty() || end <= numbers.len());
        let zero = simd.splat(0.0);
        let ahead = match self.order {
            Order::InputsLast => GROUPS_AHEAD * STEPS,
            Order::InputsFirst => STEPS * self.stride,
        };
        for (group, step) in self.steps.clone().step_by(STEPS).enumerate() {
            let left = self.steps.end - step;
            // Of the first and second vectors of pairs: how many there are, and how many lanes they have.
            let (vectors, lanes, place, second) = match self.order {
                Order::InputsLast => {
                    let lanes = [left.min(SIDE), left.saturating_sub(SIDE).min(SIDE)];
                    ([lines; 2], lanes, self.lines.start * self.stride + step, SIDE)
                }
                Order::InputsFirst => {
                    let vectors = [left.min(SIDE), left.saturating_sub(SIDE).min(SIDE)];
                    (vectors, [lines; 2], step * self.stride + self.lines.start, SIDE * self.stride)
                }
            };
            let is_whole = lines == SIDE && left >= STEPS;
            let to = to.wrapping_add(group * room * 2 * REGISTER);
            for vector in 0..SIDE {
                let from = [0, second]
                    .map(|offset| numbers.as_ptr().wrapping_add(place + offset + vector * self.stride));
                // SAFETY: only numbers in the ranges are read, and those exist: checked above. The room is the caller's promise.
                unsafe {
                    let [first, second] = if is_whole {
                        from.iter().for_each(|from| simd.prefetch(from.wrapping_add(ahead)));
                        [T::load(simd, from[0]), T::load(simd, from[1])]
                    } else {
                        let count = |half: usize| if vector < vectors[half] { lanes[half] } else { 0 };
                        [T::load_first(simd, from[0], count(0)), T::load_first(simd, from[1], count(1))]
                    };
                    let parts = amx::split::<COUNT>(simd, first, second);
                    for part in 0..room {
                        let to = to.wrapping_add(part * 2 * REGISTER + vector * SIDE);
                        simd.store(to, *parts.get(part).unwrap_or(&zero));
                    }
                }
            }
            if self.order != order {
                for part in 0..COUNT {
                    // SAFETY: as above.
                    unsafe { transpose(simd, to.wrapping_add(part * 2 * REGISTER)) };
                }
            }
        }
    }
}

/// Transposes a register's worth.
///
/// # Safety
/// It must be readable and writable.
#[inline(always)]
unsafe fn transpose(simd: Avx512, tile: *mut f32) {
    let mut vectors = [simd.splat(0.0); SIDE];
    // SAFETY: the caller's promise.
    unsafe {
        for (index, vector) in vectors.iter_mut().enumerate() {
            *vector = simd.load(tile.wrapping_add(index * SIDE));
        }
        simd.transpose(&mut vectors);
        for (index, &vector) in vectors.iter().enumerate() {
            simd.store(tile.wrapping_add(index * SIDE), vector);
        }
    }
}
