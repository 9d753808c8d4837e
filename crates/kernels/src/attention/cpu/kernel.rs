//! One item: a few panels against a range of keys.
//!
//! The lanes of all score vectors are query rows, so softmax needs no sums across lanes. A head's keys and
//! values are used where they lie if one panel reads them, and rearranged first if several do.
//! D: head size; W: the rows of a panel, rounded up to whole vectors.

use std::ops::Range;

use super::{
    call::Call,
    plan::{Item, PANELS_PER_ITEM, Panel},
    product::{self, Product, TILE},
    work::{BLOCK, PACKED_KEYS, State, Work},
};
use crate::{
    linear::microkernel::{Left, pack},
    simd::{Simd, dispatch, math},
};

/// How far ahead memory is asked for keys and values that are used once.
const AHEAD: usize = 32;

dispatch! {
    /// Writes the item's rows of the output, or its partial results.
    ///
    /// # Safety
    /// The call's shapes were checked, the item is of its plan, and nobody else uses what it writes.
    pub(super) unsafe fn run_item(call: &Call<'_>, item: &Item, scratch: &mut [f32]) = run_item_with;
}

#[inline(always)]
unsafe fn run_item_with<S: Simd>(simd: S, call: &Call<'_>, item: &Item, scratch: &mut [f32]) {
    let work = Work::new(call, item, scratch, S::LANES);
    let extent = &work.segment.extent;
    let count = item.panels.len();
    let panels: [Panel; PANELS_PER_ITEM] =
        std::array::from_fn(|index| extent.panel(item.panels.start + index.min(count - 1)));
    // SAFETY: the scratch memory is as large as the shapes at its fields say; see `run_item`.
    unsafe {
        for (panel, state) in panels.iter().zip(&work.states).take(count) {
            begin(simd, &work, panel, state);
        }
        let length = if work.shares { BLOCK } else { AHEAD };
        for start in item.keys.clone().step_by(length) {
            let block = start..item.keys.end.min(start + length);
            let mut copied = None;
            for (panel, state) in panels.iter().zip(&work.states).take(count) {
                let keys = block.start.max(panel.visible.start)..block.end.min(panel.visible.end);
                if keys.is_empty() {
                    continue;
                }
                if copied != Some(panel.group) {
                    copy(simd, &work, panel.group, block.clone());
                    copied = Some(panel.group);
                }
                advance(simd, &work, panel, state, keys, block.start);
            }
        }
        for (index, (panel, state)) in panels.iter().zip(&work.states).take(count).enumerate() {
            match item.partial {
                None => write_output(simd, &work, panel, state),
                Some(partial) => write_partial(&work, panel, state, partial, index),
            }
        }
    }
}

/// Scales and transposes the queries of a panel; clears its sums.
#[inline(always)]
unsafe fn begin<S: Simd>(simd: S, work: &Work<'_>, panel: &Panel, state: &State) {
    let (call, width) = (work.call, panel.rows.next_multiple_of(S::LANES));
    let scale = call.params.scale / call.params.soft_cap.unwrap_or(1.);
    // SAFETY: the caller's promise.
    unsafe {
        for lane in (0..width).step_by(S::LANES) {
            let rows = S::LANES.min(panel.rows - lane);
            let mut starts = [0; 16];
            for (row, start) in starts.iter_mut().enumerate().take(rows) {
                let (row, head) = call.place(work.segment, panel, lane + row);
                *start = row * call.queries.stride + head * call.head_dim;
            }
            for column in (0..call.head_dim).step_by(S::LANES) {
                let count = S::LANES.min(call.head_dim - column);
                let mut tile = [simd.splat(0.); 16];
                for (row, start) in tile.iter_mut().zip(starts).take(rows) {
                    let query = call.queries.numbers[start + column..start + column + count].as_ptr();
                    *row = simd.mul(simd.load_first(query, count), simd.splat(scale));
                }
                simd.transpose(&mut tile);
                for (element, column_of_rows) in (column..column + count).zip(tile) {
                    simd.store(state.queries.add(element * width + lane), column_of_rows);
                }
            }
        }
        for lane in (0..width).step_by(S::LANES) {
            // Not -∞, whose difference to itself is no number.
            simd.store(state.maxima.add(lane), simd.splat(f32::MIN));
            simd.store(state.totals.add(lane), simd.splat(0.));
        }
        for index in (0..panel.rows * work.padded).step_by(S::LANES) {
            simd.store(state.mixed.add(index), simd.splat(0.));
        }
    }
}

/// Packs a block of keys and copies its values, as far as that is wanted.
#[inline(always)]
unsafe fn copy<S: Simd>(simd: S, work: &Work<'_>, group: usize, block: Range<usize>) {
    let head_dim = work.call.head_dim;
    for piece in work.segment.pieces(block) {
        // SAFETY: the piece has `count` keys and values; the copies have room for a block.
        unsafe {
            if work.shares {
                for key in (0..piece.count).step_by(S::LANES) {
                    let from = piece.keys[key * work.segment.stride + group * head_dim..].as_ptr();
                    let (rows, to) = (S::LANES.min(piece.count - key), work.keys.add(piece.first + key));
                    pack(simd, from, work.segment.stride, rows, head_dim, to, PACKED_KEYS);
                }
            }
            if work.copies_values {
                for key in 0..piece.count {
                    let from =
                        piece.values[key * work.segment.stride + group * head_dim..][..head_dim].as_ptr();
                    let to = work.values.add((piece.first + key) * work.padded);
                    for column in (0..head_dim).step_by(S::LANES) {
                        let count = S::LANES.min(head_dim - column);
                        simd.store(to.add(column), simd.load_first(from.add(column), count));
                    }
                }
            }
        }
    }
}

/// Takes at most [`BLOCK`] keys into account, all seen by at least one row. Copies begin with the key
/// `copied_from`.
#[inline(always)]
unsafe fn advance<S: Simd>(
    simd: S,
    work: &Work<'_>,
    panel: &Panel,
    state: &State,
    keys: Range<usize>,
    copied_from: usize,
) {
    let width = panel.rows.next_multiple_of(S::LANES);
    // SAFETY: the caller's promise.
    unsafe {
        score(simd, work, panel, state, keys.clone(), copied_from);
        if let Some(cap) = work.call.params.soft_cap {
            for index in (0..keys.len() * width).step_by(S::LANES) {
                let bent = math::tanh(simd, simd.load(work.scores.add(index)));
                simd.store(work.scores.add(index), simd.mul(simd.splat(cap), bent));
            }
        }
        mask(work, panel, &keys, width);
        for lane in (0..width).step_by(S::LANES) {
            softmax(simd, work, state, keys.len(), width, lane);
        }
        for row in 0..panel.rows {
            let factor = *work.factors.add(row);
            if factor != 1. {
                for column in (0..work.padded).step_by(S::LANES) {
                    let sum = state.mixed.add(row * work.padded + column);
                    simd.store(sum, simd.mul(simd.load(sum), simd.splat(factor)));
                }
            }
        }
        mix(simd, work, panel, state, keys, copied_from);
    }
}

/// `scores [keys, W] = K [keys, D] · queries [D, W]`
#[inline(always)]
unsafe fn score<S: Simd>(
    simd: S,
    work: &Work<'_>,
    panel: &Panel,
    state: &State,
    keys: Range<usize>,
    copied_from: usize,
) {
    let (width, head_dim) = (panel.rows.next_multiple_of(S::LANES), work.call.head_dim);
    let product = Product {
        a: Left {
            start: work.keys.wrapping_add(keys.start - copied_from),
            row_stride: 1,
            step_stride: PACKED_KEYS,
        },
        b: (state.queries, width),
        c: (work.scores, width),
        rows: keys.len(),
        columns: width,
        steps: head_dim,
        adds: false,
    };
    if work.shares {
        // SAFETY: the caller's promise: these keys were packed.
        return unsafe { product::multiply(simd, &product) };
    }
    let group = panel.group * head_dim;
    for piece in work.segment.pieces(keys.clone()) {
        for key in (0..piece.count).step_by(TILE) {
            // SAFETY: the piece has `count` keys; the scores have room for a block.
            unsafe {
                let start = piece.keys.as_ptr().add(key * work.segment.stride + group);
                let a = Left { start, row_stride: work.segment.stride, step_stride: 1 };
                let c = (work.scores.add((piece.first + key) * width), width);
                let product = Product { a, c, rows: TILE.min(piece.count - key), ..product };
                if product.rows == TILE && width == S::LANES && head_dim.is_multiple_of(16) {
                    let position = keys.start + piece.first + key + AHEAD;
                    product::multiply_tile_ahead(simd, &product, ahead(work, panel, state, position));
                } else {
                    product::multiply(simd, &product);
                }
            }
        }
    }
}

/// The addresses of the keys and the values of [`TILE`] positions.
#[inline(always)]
fn ahead(work: &Work<'_>, panel: &Panel, state: &State, position: usize) -> [*const f32; 2 * TILE] {
    // Where there are no more keys, something that is in cache anyway.
    let mut addresses = [state.queries.cast_const(); 2 * TILE];
    let end = panel.visible.end.min(position + TILE);
    for piece in work.segment.pieces(position..end) {
        for key in 0..piece.count {
            let start = key * work.segment.stride + panel.group * work.call.head_dim;
            addresses[piece.first + key] = piece.keys[start..].as_ptr();
            addresses[TILE + piece.first + key] = piece.values[start..].as_ptr();
        }
    }
    addresses
}

/// `mixed [rows, D] += weightsᵀ [rows, keys] · V [keys, D]`
#[inline(always)]
unsafe fn mix<S: Simd>(
    simd: S,
    work: &Work<'_>,
    panel: &Panel,
    state: &State,
    keys: Range<usize>,
    copied_from: usize,
) {
    let width = panel.rows.next_multiple_of(S::LANES);
    let product = Product {
        a: Left { start: work.scores, row_stride: 1, step_stride: width },
        b: (work.values.wrapping_add((keys.start - copied_from) * work.padded), work.padded),
        c: (state.mixed, work.padded),
        rows: panel.rows,
        columns: work.padded,
        steps: keys.len(),
        adds: true,
    };
    if work.copies_values {
        // SAFETY: the caller's promise: the values of these keys were copied.
        return unsafe { product::multiply(simd, &product) };
    }
    for piece in work.segment.pieces(keys) {
        let values = piece.values[panel.group * work.call.head_dim..].as_ptr();
        // SAFETY: the piece has `count` values, and D is a whole number of vectors.
        unsafe {
            let a = Left { start: work.scores.add(piece.first * width), ..product.a };
            let (b, steps) = ((values, work.segment.stride), piece.count);
            product::multiply(simd, &Product { a, b, steps, ..product });
        }
    }
}

/// Sets the scores of keys that a row does not see to -∞.
unsafe fn mask(work: &Work<'_>, panel: &Panel, keys: &Range<usize>, width: usize) {
    let extent = &work.segment.extent;
    let token = |row| (panel.first + row) / extent.share;
    let (first, last) = (extent.visible(token(0)), extent.visible(token(panel.rows - 1)));
    if last.start <= keys.start && keys.end <= first.end {
        return;
    }
    for row in 0..panel.rows {
        let visible = extent.visible(token(row));
        let hidden_before = keys.start..visible.start.min(keys.end);
        let hidden_after = visible.end.max(keys.start)..keys.end;
        for key in hidden_before.chain(hidden_after) {
            // SAFETY: a key of the block and a row of the panel.
            unsafe { *work.scores.add((key - keys.start) * width + row) = f32::NEG_INFINITY };
        }
    }
}

/// Turns one vector of rows' scores into weights relative to the new maxima.
#[inline(always)]
unsafe fn softmax<S: Simd>(simd: S, work: &Work<'_>, state: &State, keys: usize, width: usize, lane: usize) {
    // SAFETY: the caller's promise: `keys` vectors of scores and one of everything else.
    unsafe {
        let scores = work.scores.add(lane);
        let old = simd.load(state.maxima.add(lane));
        // Four chains, so that comparisons need not wait for each other.
        let mut maxima = [old; 4];
        let whole = keys - keys % 4;
        for key in (0..whole).step_by(4) {
            for (chain, maximum) in maxima.iter_mut().enumerate() {
                *maximum = simd.max(*maximum, simd.load(scores.add((key + chain) * width)));
            }
        }
        for key in whole..keys {
            maxima[0] = simd.max(maxima[0], simd.load(scores.add(key * width)));
        }
        let new = simd.max(simd.max(maxima[0], maxima[1]), simd.max(maxima[2], maxima[3]));
        let factor = math::weight(simd, simd.sub(old, new));
        let mut total = simd.mul(simd.load(state.totals.add(lane)), factor);
        for key in 0..keys {
            let score = scores.add(key * width);
            let weight = math::weight(simd, simd.sub(simd.load(score), new));
            simd.store(score, weight);
            total = simd.add(total, weight);
        }
        simd.store(work.factors.add(lane), factor);
        simd.store(state.maxima.add(lane), new);
        simd.store(state.totals.add(lane), total);
    }
}

#[inline(always)]
unsafe fn write_output<S: Simd>(simd: S, work: &Work<'_>, panel: &Panel, state: &State) {
    let head_dim = work.call.head_dim;
    for row in 0..panel.rows {
        // SAFETY: the caller's promise.
        unsafe {
            let output = work.call.output.at(work.call.output_offset(work.segment, panel, row));
            let total = *state.totals.add(row);
            work.call.write_lse(work.segment, panel, row, *state.maxima.add(row), total);
            let inverse = simd.splat(1. / total);
            for column in (0..head_dim).step_by(S::LANES) {
                let sum = simd.load(state.mixed.add(row * work.padded + column));
                let count = S::LANES.min(head_dim - column);
                simd.store_first(output.add(column), simd.mul(sum, inverse), count);
            }
        }
    }
}

unsafe fn write_partial(work: &Work<'_>, panel: &Panel, state: &State, partial: usize, index: usize) {
    let head_dim = work.call.head_dim;
    let layout = work.segment.extent.partial_layout(head_dim);
    // SAFETY: the caller's promise.
    unsafe {
        let to = work.call.partials.at(partial + index * layout.length());
        for row in 0..panel.rows {
            let from = state.mixed.add(row * work.padded);
            to.add(row * head_dim).copy_from_nonoverlapping(from, head_dim);
        }
        to.add(layout.maxima()).copy_from_nonoverlapping(state.maxima, panel.rows);
        to.add(layout.sums()).copy_from_nonoverlapping(state.totals, panel.rows);
    }
}
