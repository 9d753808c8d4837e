//! One task: a range of keys of one head against the rows that see it.
//!
//! The lanes of scores are query rows, as in the forward pass. Rows of a head go token by token, the
//! query heads of a token side by side. D: head size; W: the rows of a block, rounded up to whole vectors.

use std::ops::Range;

use super::{
    super::{
        plan::Extent,
        product::{self, Product},
    },
    Call, Gradients,
    plan::{KeyRange, Plan, tokens_that_see},
    work::{KEYS, ROWS, Work},
};
use crate::{
    linear::microkernel::{Left, pack},
    output::Output,
    simd::{Simd, math},
    view::StridedRows,
};

/// One task's share of the call.
struct Task<'a> {
    call: &'a Call<'a>,
    extent: &'a Extent,
    range: &'a KeyRange,
    /// The first row of the sequence.
    first_row: usize,
    /// The key/value head.
    group: usize,
    work: Work,
    /// The gradient of the first query of the range's first token, and floats from one token to the next.
    d_queries: (*mut f32, usize),
}

/// Writes the gradients of a range's keys and values, and its sums for the queries.
///
/// # Safety
/// The task is of the plan of this call, whose shapes were checked; nobody else uses what it writes.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn run_task_with<S: Simd>(
    simd: S,
    call: &Call<'_>,
    gradients: Gradients,
    plan: &Plan,
    (range, group): (usize, usize),
    deltas: &[f32],
    partials: Output<f32>,
    scratch: &mut [f32],
) {
    let range = &plan.ranges[range];
    let (first_row, extent) = &call.segments[range.segment];
    let width = extent.share * call.head_dim;
    // SAFETY: both lie within what the caller lends to this task.
    let d_queries = unsafe {
        match range.partial {
            Some(partial) => (partials.at(partial + group * range.tokens.len() * width), width),
            None => {
                let row = (first_row + range.tokens.start) * call.groups + group;
                (gradients.d_queries.at(row * width), call.groups * width)
            }
        }
    };
    let work = Work::new(call.head_dim, range, scratch, S::LANES);
    let task = Task { call, extent, range, first_row: *first_row, group, work, d_queries };
    let span = Work::span(call.head_dim, range);
    let mut written = range.tokens.start;
    // SAFETY: the scratch memory is as large as the shapes at its fields say.
    unsafe {
        for start in range.keys.clone().step_by(span) {
            let span = start..range.keys.end.min(start + span);
            begin_span(simd, &task, &span);
            let tokens = tokens_that_see(extent, &span);
            let rows = tokens.start * extent.share..tokens.end * extent.share;
            for first in rows.clone().step_by(ROWS) {
                let rows = first..rows.end.min(first + ROWS);
                run_rows(simd, &task, &span, rows, deltas, written);
            }
            written = written.max(tokens.end);
            write_span(simd, &task, &span, gradients);
        }
    }
}

/// A block of rows against a span of keys. Of tokens before `written`, gradients are there to be added to.
#[inline(always)]
unsafe fn run_rows<S: Simd>(
    simd: S,
    task: &Task<'_>,
    span: &Range<usize>,
    rows: Range<usize>,
    deltas: &[f32],
    written: usize,
) {
    let visible = task.extent.visible_to(rows.clone());
    let visible = visible.start.max(span.start)..visible.end.min(span.end);
    // SAFETY: the caller's promise.
    unsafe {
        begin_rows(simd, task, &rows, deltas);
        for start in visible.clone().step_by(KEYS) {
            let keys = start..visible.end.min(start + KEYS);
            run_tile(simd, task, start - span.start, keys, &rows);
        }
        write_rows(simd, task, &rows, written);
    }
}

/// Copies keys and values; clears their gradients.
#[inline(always)]
unsafe fn begin_span<S: Simd>(simd: S, task: &Task<'_>, span: &Range<usize>) {
    let work = &task.work;
    for (index, key) in span.clone().enumerate() {
        let (row, offset) = (task.first_row + key, index * work.padded);
        // SAFETY: the span's rows; the copies have room for a span.
        unsafe {
            copy_row(simd, task, &task.call.keys, (row, task.group), 1., work.keys.add(offset));
            copy_row(simd, task, &task.call.values, (row, task.group), 1., work.values.add(offset));
        }
    }
    // SAFETY: as above.
    unsafe {
        work.d_keys.write_bytes(0, span.len() * work.padded);
        work.d_values.write_bytes(0, span.len() * work.padded);
    }
}

/// Copies queries, scaled, and gradients of the output, and transposes both; clears the queries' gradient.
#[inline(always)]
unsafe fn begin_rows<S: Simd>(simd: S, task: &Task<'_>, rows: &Range<usize>, deltas: &[f32]) {
    let (work, call) = (&task.work, task.call);
    // SAFETY: rows of the segment, at most `ROWS` of them.
    unsafe {
        for (index, row) in rows.clone().enumerate() {
            let (row, head) = task.place(row);
            let offset = index * work.padded;
            copy_row(simd, task, &call.queries, (row, head), call.params.scale, work.queries.add(offset));
            copy_row(simd, task, &call.d_out, (row, head), 1., work.d_out.add(offset));
            *work.lse.add(index) = call.lse[head * call.rows + row];
            *work.deltas.add(index) = deltas[head * call.rows + row];
        }
        for index in rows.len()..ROWS {
            *work.lse.add(index) = 0.;
            *work.deltas.add(index) = 0.;
        }
        for lane in (0..rows.len()).step_by(S::LANES) {
            let count = S::LANES.min(rows.len() - lane);
            for (from, to) in [(work.queries, work.queries_across), (work.d_out, work.d_out_across)] {
                let from = from.add(lane * work.padded);
                pack(simd, from.cast_const(), work.padded, count, call.head_dim, to.add(lane), ROWS);
            }
        }
        work.d_queries.write_bytes(0, rows.len() * work.padded);
    }
}

/// All five products for at most [`KEYS`] keys, each seen by at least one row. `first` is the first key's place in
/// the span.
#[inline(always)]
unsafe fn run_tile<S: Simd>(simd: S, task: &Task<'_>, first: usize, keys: Range<usize>, rows: &Range<usize>) {
    let (work, count, padded) = (&task.work, keys.len(), task.work.padded);
    let width = rows.len().next_multiple_of(S::LANES);
    let offset = first * padded;
    // SAFETY: the caller's promise.
    unsafe {
        let by_key = |start: *mut f32| Left { start: start.add(offset), row_stride: padded, step_stride: 1 };
        let scores = Product {
            a: by_key(work.keys),
            b: (work.queries_across, ROWS),
            c: (work.weights, ROWS),
            rows: count,
            columns: width,
            steps: task.call.head_dim,
            adds: false,
        };
        product::multiply(simd, &scores);
        let d_weights = Product {
            a: by_key(work.values),
            b: (work.d_out_across, ROWS),
            c: (work.d_scores, ROWS),
            ..scores
        };
        product::multiply(simd, &d_weights);
        bend(simd, task, count, width);
        hide(task, &keys, rows);

        let across = |start: *mut f32| Left { start, row_stride: ROWS, step_stride: 1 };
        let d_values = Product {
            a: across(work.weights),
            b: (work.d_out, padded),
            c: (work.d_values.add(offset), padded),
            rows: count,
            columns: padded,
            steps: rows.len(),
            adds: true,
        };
        product::multiply(simd, &d_values);
        let d_keys = Product {
            a: across(work.d_scores),
            b: (work.queries, padded),
            c: (work.d_keys.add(offset), padded),
            ..d_values
        };
        product::multiply(simd, &d_keys);
        let d_queries = Product {
            a: Left { start: work.d_scores, row_stride: 1, step_stride: ROWS },
            b: (work.keys.add(offset), padded),
            c: (work.d_queries, padded),
            rows: rows.len(),
            columns: padded,
            steps: count,
            adds: true,
        };
        product::multiply(simd, &d_queries);
    }
}

/// Turns scores into weights, and the weights' gradients into those of the scores before the cap.
#[inline(always)]
unsafe fn bend<S: Simd>(simd: S, task: &Task<'_>, keys: usize, width: usize) {
    let work = &task.work;
    // SAFETY: the caller's promise: `keys` rows of `width` numbers.
    unsafe {
        for key in 0..keys {
            for lane in (0..width).step_by(S::LANES) {
                let (lse, delta) = (simd.load(work.lse.add(lane)), simd.load(work.deltas.add(lane)));
                let at = key * ROWS + lane;
                let mut score = simd.load(work.weights.add(at));
                let mut gradient = simd.sub(simd.load(work.d_scores.add(at)), delta);
                if let Some(cap) = task.call.params.soft_cap {
                    let bent = math::tanh(simd, simd.mul(score, simd.splat(1. / cap)));
                    score = simd.mul(bent, simd.splat(cap));
                    let slope = simd.sub(simd.splat(1.), simd.mul(bent, bent));
                    gradient = simd.mul(gradient, slope);
                }
                let weight = math::weight(simd, simd.sub(score, lse));
                simd.store(work.weights.add(at), weight);
                simd.store(work.d_scores.add(at), simd.mul(weight, gradient));
            }
        }
    }
}

/// Clears what belongs to keys that a row does not see.
unsafe fn hide(task: &Task<'_>, keys: &Range<usize>, rows: &Range<usize>) {
    let (extent, work) = (task.extent, &task.work);
    let (first, last) =
        (extent.visible(rows.start / extent.share), extent.visible((rows.end - 1) / extent.share));
    if last.start <= keys.start && keys.end <= first.end {
        return;
    }
    for (index, row) in rows.clone().enumerate() {
        let visible = extent.visible(row / extent.share);
        let hidden_before = keys.start..visible.start.min(keys.end);
        let hidden_after = visible.end.max(keys.start)..keys.end;
        for key in hidden_before.chain(hidden_after) {
            let at = (key - keys.start) * ROWS + index;
            // SAFETY: a key and a row of the tile.
            unsafe {
                *work.weights.add(at) = 0.;
                *work.d_scores.add(at) = 0.;
            }
        }
    }
}

/// Writes, or adds, the gradient of a block of rows.
#[inline(always)]
unsafe fn write_rows<S: Simd>(simd: S, task: &Task<'_>, rows: &Range<usize>, written: usize) {
    let (head_dim, share) = (task.call.head_dim, task.extent.share);
    let scale = simd.splat(task.call.params.scale);
    for (index, row) in rows.clone().enumerate() {
        let (token, head) = (row / share, row % share);
        let (start, stride) = task.d_queries;
        // SAFETY: a row of the range's tokens.
        unsafe {
            let to = start.add((token - task.range.tokens.start) * stride + head * head_dim);
            let from = task.work.d_queries.add(index * task.work.padded);
            for column in (0..head_dim).step_by(S::LANES) {
                let count = S::LANES.min(head_dim - column);
                let mut sum = simd.mul(simd.load(from.add(column)), scale);
                if token < written {
                    sum = simd.add(sum, simd.load_first(to.add(column), count));
                }
                simd.store_first(to.add(column), sum, count);
            }
        }
    }
}

/// Writes the gradients of a span's keys and values.
#[inline(always)]
unsafe fn write_span<S: Simd>(simd: S, task: &Task<'_>, span: &Range<usize>, gradients: Gradients) {
    let (head_dim, work) = (task.call.head_dim, &task.work);
    for (index, key) in span.clone().enumerate() {
        let to = ((task.first_row + key) * task.call.groups + task.group) * head_dim;
        for (from, to_all) in [(work.d_keys, gradients.d_keys), (work.d_values, gradients.d_values)] {
            // SAFETY: the span's keys, and their place in the results.
            unsafe {
                let (from, to) = (from.add(index * work.padded), to_all.at(to));
                for column in (0..head_dim).step_by(S::LANES) {
                    let count = S::LANES.min(head_dim - column);
                    simd.store_first(to.add(column), simd.load(from.add(column)), count);
                }
            }
        }
    }
}

/// `scale` times one head of one row, with zeros behind it up to whole vectors.
#[inline(always)]
unsafe fn copy_row<S: Simd>(
    simd: S,
    task: &Task<'_>,
    from: &StridedRows<'_>,
    (row, head): (usize, usize),
    scale: f32,
    to: *mut f32,
) {
    let head_dim = task.call.head_dim;
    let from = from.head(row, head, head_dim).as_ptr();
    // SAFETY: D numbers are readable; the caller promises room for whole vectors.
    unsafe {
        for column in (0..head_dim).step_by(S::LANES) {
            let values = simd.load_first(from.add(column), S::LANES.min(head_dim - column));
            simd.store(to.add(column), simd.mul(values, simd.splat(scale)));
        }
    }
}

impl Task<'_> {
    /// The row of the batch and the query head that a row of this head stands for.
    #[inline(always)]
    fn place(&self, row: usize) -> (usize, usize) {
        let share = self.extent.share;
        (self.first_row + row / share, self.group * share + row % share)
    }
}
