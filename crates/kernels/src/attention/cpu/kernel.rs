//! One item: a few panels against a range of keys.
//!
//! The lanes of all score vectors are query rows, so softmax needs no sums across lanes.
//! D: head size; W: the rows of a panel, rounded up to whole vectors.

use std::ops::Range;

use super::plan::{Extent, Item, PANEL, PANELS_PER_ITEM, Panel};
use super::product::{self, Product};
use crate::{
    attention::AttentionParams,
    host::Output,
    simd::{Simd, dispatch, math},
};

/// Keys between two updates of the running maximum: their scores stay in the first-level cache.
const BLOCK: usize = 64;

/// How many keys ahead memory is asked for, when each key is read only once.
const AHEAD: usize = 32;

/// Keys between two such requests.
const STRIDE: usize = 8;

/// The arguments of a call.
pub(super) struct Call<'a> {
    /// `[rows, H, D]`
    pub(super) queries: &'a [f32],
    pub(super) heads: usize,
    pub(super) head_dim: usize,
    pub(super) params: AttentionParams,
    pub(super) segments: Vec<Cached<'a>>,
    /// `[rows, H, D]`
    pub(super) output: Output<f32>,
    /// See [`Item::partial`].
    pub(super) partials: Output<f32>,
}

/// A segment and its cache.
pub(super) struct Cached<'a> {
    pub(super) extent: Extent,
    /// Its first row in the batch.
    pub(super) first_row: usize,
    /// Positions per chunk.
    pub(super) length: usize,
    /// Keys and values, each `[length, G, D]`.
    pub(super) chunks: Vec<[&'a [f32]; 2]>,
}

/// Keys and values of consecutive positions inside one chunk.
struct Piece<'a> {
    /// How many of the keys asked for come before.
    first: usize,
    count: usize,
    /// `[count, G, D]`
    keys: &'a [f32],
    /// `[count, G, D]`
    values: &'a [f32],
}

impl<'a> Cached<'a> {
    /// The pieces that hold the `wanted` positions; `row` is `G · D`.
    fn pieces(&self, wanted: Range<usize>, row: usize) -> impl Iterator<Item = Piece<'a>> {
        let mut next = wanted.start;
        std::iter::from_fn(move || {
            if next >= wanted.end {
                return None;
            }
            let within = (next - self.extent.start) % self.length;
            let [keys, values] = self.chunks[(next - self.extent.start) / self.length];
            let count = (wanted.end - next).min(self.length - within);
            let range = within * row..(within + count) * row;
            let first = next - wanted.start;
            next += count;
            Some(Piece { first, count, keys: &keys[range.clone()], values: &values[range] })
        })
    }
}

impl Call<'_> {
    /// Where a row of a panel lies in the queries and in the output.
    pub(super) fn offset(&self, segment: &Cached<'_>, panel: &Panel, row: usize) -> usize {
        let share = segment.extent.share;
        let (token, head) = ((panel.first + row) / share, (panel.first + row) % share);
        ((segment.first_row + token) * self.heads + panel.group * share + head) * self.head_dim
    }
}

/// Working memory of a thread.
pub(super) struct Scratch(Vec<CacheLine>);

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct CacheLine([f32; 16]);

impl Scratch {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    fn at_least(&mut self, floats: usize) -> *mut f32 {
        let lines = floats.div_ceil(16);
        if self.0.len() < lines {
            self.0.resize(lines, CacheLine([0.; 16]));
        }
        self.0.as_mut_ptr().cast()
    }
}

/// What an item works with: its segment and its places in the scratch memory.
struct Work<'a> {
    call: &'a Call<'a>,
    segment: &'a Cached<'a>,
    /// D rounded up to whole vectors.
    padded: usize,
    /// `[BLOCK, W]`: scores, then softmax weights.
    scores: *mut f32,
    /// `[W]`: what the sums so far are multiplied with because the maximum rose.
    factors: *mut f32,
    /// `[BLOCK, padded]`: a head's values, if `copies`.
    values: *mut f32,
    /// Whether several panels read a head's keys and values.
    shares: bool,
    /// Whether values are copied: to be read close together by several panels, or as whole vectors.
    copies: bool,
    states: [State; PANELS_PER_ITEM],
}

/// The running results of a panel.
#[derive(Clone, Copy)]
struct State {
    /// `[D, W]`: the scaled queries.
    queries: *mut f32,
    /// `[rows, padded]`: the weighted sums of values.
    mixed: *mut f32,
    /// `[W]`: the largest scores.
    maxima: *mut f32,
    /// `[W]`: the sums of weights.
    totals: *mut f32,
}

impl<'a> Work<'a> {
    fn new(call: &'a Call<'a>, item: &Item, scratch: &mut Scratch, lanes: usize) -> Self {
        let padded = call.head_dim.next_multiple_of(lanes);
        let lengths = [PANEL * call.head_dim, PANEL * padded, PANEL, PANEL];
        let per_panel: usize = lengths.iter().sum();
        // Room for every panel, whatever the item has: the memory is kept.
        let shared = BLOCK * PANEL + PANEL + BLOCK * padded.next_multiple_of(16);
        let start = scratch.at_least(shared + PANELS_PER_ITEM * per_panel);
        let at = |offset| start.wrapping_add(offset);
        let state = |index| {
            let first = shared + index * per_panel;
            let [queries, mixed, maxima, _] = lengths;
            State {
                queries: at(first),
                mixed: at(first + queries),
                maxima: at(first + queries + mixed),
                totals: at(first + queries + mixed + maxima),
            }
        };
        let segment = &call.segments[item.segment];
        let shares = segment.extent.panels_per_group() > 1;
        Self {
            call,
            segment,
            shares,
            copies: shares || padded != call.head_dim,
            padded,
            scores: at(0),
            factors: at(BLOCK * PANEL),
            values: at(BLOCK * PANEL + PANEL),
            states: std::array::from_fn(state),
        }
    }

    /// Floats from one position's keys or values to the next one's.
    fn row(&self) -> usize {
        self.segment.extent.groups * self.call.head_dim
    }
}

dispatch! {
    /// Writes the item's rows of the output, or its partial results.
    ///
    /// # Safety
    /// The call's shapes were checked, the item is of its plan, and nobody else uses what it writes.
    pub(super) unsafe fn run_item(call: &Call<'_>, item: &Item, scratch: &mut Scratch) = run_item_with;
}

#[inline(always)]
unsafe fn run_item_with<S: Simd>(simd: S, call: &Call<'_>, item: &Item, scratch: &mut Scratch) {
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
        for start in item.keys.clone().step_by(BLOCK) {
            let block = start..item.keys.end.min(start + BLOCK);
            let mut copied = None;
            for (panel, state) in panels.iter().zip(&work.states).take(count) {
                let keys = block.start.max(panel.visible.start)..block.end.min(panel.visible.end);
                if keys.is_empty() {
                    continue;
                }
                if work.copies && copied != Some(panel.group) {
                    copy_values(simd, &work, panel.group, block.clone());
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
                *start = call.offset(work.segment, panel, lane + row);
            }
            for column in (0..call.head_dim).step_by(S::LANES) {
                let count = S::LANES.min(call.head_dim - column);
                let mut tile = [simd.splat(0.); 16];
                for (row, start) in tile.iter_mut().zip(starts).take(rows) {
                    let query = call.queries[start + column..start + column + count].as_ptr();
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

/// Copies a block of values of one head; the copy's rows are padded with zeros.
#[inline(always)]
unsafe fn copy_values<S: Simd>(simd: S, work: &Work<'_>, group: usize, block: Range<usize>) {
    let head_dim = work.call.head_dim;
    for piece in work.segment.pieces(block, work.row()) {
        for key in 0..piece.count {
            let start = key * work.row() + group * head_dim;
            let from = piece.values[start..start + head_dim].as_ptr();
            // SAFETY: the slice bounds above; the copy has room for a block.
            unsafe {
                let to = work.values.add((piece.first + key) * work.padded);
                for column in (0..head_dim).step_by(S::LANES) {
                    let count = S::LANES.min(head_dim - column);
                    simd.store(to.add(column), simd.load_first(from.add(column), count));
                }
            }
        }
    }
}

/// Takes at most [`BLOCK`] keys into account, all seen by at least one row. Copied values begin with the
/// key `copied_from`.
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
        score(simd, work, panel, state, keys.clone(), width);
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
    width: usize,
) {
    let head = panel.group * work.call.head_dim;
    let stride = if work.shares { BLOCK } else { STRIDE };
    for piece in work.segment.pieces(keys.clone(), work.row()) {
        for key in (0..piece.count).step_by(stride) {
            if !work.shares && state.queries == work.states[0].queries {
                prefetch(simd, work, head, keys.start + piece.first + key + AHEAD);
            }
            // SAFETY: the piece has `count` keys; the scores have room for a block.
            unsafe {
                let product = Product {
                    a: piece.keys.as_ptr().add(key * work.row() + head),
                    a_stride: work.row(),
                    b: state.queries,
                    b_stride: width,
                    c: work.scores.add((piece.first + key) * width),
                    c_stride: width,
                    rows: stride.min(piece.count - key),
                    columns: width,
                    steps: work.call.head_dim,
                };
                product::multiply(simd, &product);
            }
        }
    }
}

/// Asks for [`STRIDE`] keys and values of one head.
#[inline(always)]
fn prefetch<S: Simd>(simd: S, work: &Work<'_>, head: usize, position: usize) {
    let end = work.segment.extent.end.min(position + STRIDE);
    for piece in work.segment.pieces(position..end, work.row()) {
        for key in 0..piece.count {
            let start = key * work.row() + head;
            let range = start..start + work.row();
            let (keys, values) = (&piece.keys[range.clone()], &piece.values[range]);
            for column in (0..work.row()).step_by(16) {
                simd.prefetch(keys.as_ptr().wrapping_add(column));
            }
            for column in (0..work.row()).step_by(16) {
                simd.prefetch(values.as_ptr().wrapping_add(column));
            }
        }
    }
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
    let mut product = Product {
        a: work.scores,
        a_stride: width,
        b: work.values.wrapping_add((keys.start - copied_from) * work.padded),
        b_stride: work.padded,
        c: state.mixed,
        c_stride: work.padded,
        rows: panel.rows,
        columns: work.padded,
        steps: keys.len(),
    };
    if work.copies {
        // SAFETY: the caller's promise: the values of these keys were copied.
        return unsafe { product::add_transposed(simd, &product) };
    }
    for piece in work.segment.pieces(keys, work.row()) {
        // SAFETY: the piece has `count` values, and D is a whole number of vectors.
        unsafe {
            product.a = work.scores.add(piece.first * width);
            product.b = piece.values.as_ptr().add(panel.group * work.call.head_dim);
            product.b_stride = work.row();
            product.steps = piece.count;
            product::add_transposed(simd, &product);
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
        let factor = math::exp(simd, simd.sub(old, new));
        let mut total = simd.mul(simd.load(state.totals.add(lane)), factor);
        for key in 0..keys {
            let score = scores.add(key * width);
            let weight = math::exp(simd, simd.sub(simd.load(score), new));
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
            let output = work.call.output.at(work.call.offset(work.segment, panel, row));
            let inverse = simd.splat(1. / *state.totals.add(row));
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
