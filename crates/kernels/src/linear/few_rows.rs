//! Few rows of `x`: each weight is read from memory once, and reading it is what takes the time.
//!
//! Products are summed along K, in lanes: the sums of one row are the same however many rows there are.

use std::ops::Range;

use super::cpu::{Call, Product};
use crate::{
    parts::Parts,
    pool,
    scratch::with_scratch,
    simd::{Element, Simd, dispatch},
    view::Floats,
};

/// The most rows of `x` that are multiplied at once.
const MOST_ROWS: usize = 8;

/// Weight rows that stay in a cache while further rows of `x` are multiplied with them.
const TILE: usize = 24;

/// Tasks per thread, if the weights are not too small or too large for that.
const TASKS_PER_THREAD: usize = 8;

/// The size of the weights of a task is in this range.
const TASK_BYTES: std::ops::RangeInclusive<usize> = 16 << 10..=1 << 20;

/// Memory is asked for weights at least this far ahead. A thread's tasks are neighbours: this may reach into
/// the next one.
const AHEAD_BYTES: usize = 4 << 10;

const CACHE_LINE_BYTES: usize = 64;

/// The largest vector.
const MOST_LANES: usize = 16;

pub(super) fn run(call: &Call<'_>) {
    let row_bytes = |product: &Product<'_>| {
        product.layers().map(|layer| layer.weight.size() * call.inputs).sum::<usize>().max(1)
    };
    let bytes: usize = call.products.iter().map(|product| row_bytes(product) * product.outputs).sum();
    let goal = bytes / (pool::threads() * TASKS_PER_THREAD);
    let goal = goal.clamp(*TASK_BYTES.start(), *TASK_BYTES.end());
    let mut tasks = Vec::new();
    for product in call.products {
        let length = (goal / row_bytes(product)).clamp(1, 4096).next_multiple_of(TILE);
        for start in (0..product.outputs).step_by(length) {
            tasks.push(Task { product, start, count: length.min(product.outputs - start) });
        }
    }
    pool::for_each(tasks.len(), &|index| tasks[index].run(call));
}

/// A range of outputs of one product.
struct Task<'a> {
    product: &'a Product<'a>,
    start: usize,
    count: usize,
}

impl Task<'_> {
    fn run(&self, call: &Call<'_>) {
        let stride = self.count.next_multiple_of(MOST_LANES);
        with_scratch(2 * call.rows * stride, |scratch| {
            let (first, second) = scratch.split_at_mut(call.rows * stride);
            for (layer, sums) in self.product.layers().zip([&mut *first, &mut *second]) {
                let sums = sums.as_mut_ptr();
                match layer.weight {
                    Floats::F32(weights) => self.sum(call, weights, sums, stride),
                    Floats::Bf16(weights) => self.sum(call, weights, sums, stride),
                    Floats::F16(weights) => self.sum(call, weights, sums, stride),
                }
            }
            let values = if self.product.gate.is_some() { second.as_ptr() } else { first.as_ptr() };
            let sums = Sums { gate: first.as_ptr(), values, stride };
            // SAFETY: both hold `stride` sums per row, and tasks have outputs of their own.
            unsafe { finish(call, self, &sums) };
        });
    }

    /// `to` has room for `stride >= count` sums per row of the call.
    fn sum<W: Element>(&self, call: &Call<'_>, weights: &[W], to: *mut f32, stride: usize) {
        let weights = weights[self.start * call.inputs..][..self.count * call.inputs].as_ptr();
        let (rows, inputs) = (call.rows, call.inputs);
        let x = call.x.as_ptr();
        // SAFETY: the slices are as long as the call's shapes say; the sums are the task's own.
        unsafe { dots(Dots { x, rows, inputs, weights, outputs: self.count, to, stride }) };
    }
}

/// What a task has summed: `stride` numbers per row.
struct Sums {
    /// Unused without a gate.
    gate: *const f32,
    values: *const f32,
    stride: usize,
}

/// `to[row · stride + output] = x[row] · weights[output]`
///
/// Functions that take one ask their caller for this: `x` holds `rows` and `weights` holds `outputs` rows of
/// `inputs` numbers; `to` is writable as described.
#[derive(Clone, Copy)]
pub(crate) struct Dots<W> {
    pub(crate) x: *const f32,
    pub(crate) rows: usize,
    pub(crate) inputs: usize,
    pub(crate) weights: *const W,
    pub(crate) outputs: usize,
    pub(crate) to: *mut f32,
    pub(crate) stride: usize,
}

impl<W> Dots<W> {
    /// The part with these rows of `x` and of the weights.
    ///
    /// # Safety
    /// The ranges lie inside.
    #[inline(always)]
    unsafe fn part(self, rows: Range<usize>, outputs: Range<usize>) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            Self {
                x: self.x.add(rows.start * self.inputs),
                rows: rows.len(),
                weights: self.weights.add(outputs.start * self.inputs),
                outputs: outputs.len(),
                to: self.to.add(rows.start * self.stride + outputs.start),
                ..self
            }
        }
    }
}

dispatch! {
    pub(crate) unsafe fn dots<W: Element>(dots: Dots<W>) = dots_with;

    unsafe fn finish(call: &Call<'_>, task: &Task<'_>, sums: &Sums) = finish_with;
}

/// # Safety
/// As for [`Product::finish`], for all rows of the call.
#[inline(always)]
unsafe fn finish_with<S: Simd>(simd: S, call: &Call<'_>, task: &Task<'_>, sums: &Sums) {
    for row in 0..call.rows {
        // SAFETY: the caller's promise.
        unsafe {
            let from = (sums.gate.add(row * sums.stride), sums.values.add(row * sums.stride));
            task.product.finish(simd, from, row, task.start, task.count);
        }
    }
}

/// # Safety
/// See [`Dots`].
#[inline(always)]
unsafe fn dots_with<S: Simd, W: Element>(simd: S, dots: Dots<W>) {
    if dots.rows == 1 && S::LANES >= 16 {
        // SAFETY: the caller's promise.
        return unsafe { row_with(simd, dots) };
    }
    let blocks = Parts { whole: dots.rows, count: dots.rows.div_ceil(MOST_ROWS) };
    for start in (0..dots.outputs).step_by(TILE) {
        let tile = start..dots.outputs.min(start + TILE);
        for rows in blocks.ranges() {
            // SAFETY: the caller's promise.
            unsafe { block_with(simd, dots.part(rows, tile.clone())) };
        }
    }
}

/// A single row of large vectors: memory is all that counts, and it is read fastest in two streams that lie far apart, one
/// through each half of the weights.
///
/// # Safety
/// See [`Dots`]; `rows == 1`.
#[inline(always)]
unsafe fn row_with<S: Simd, W: Element>(simd: S, dots: Dots<W>) {
    let half = dots.outputs.div_ceil(2);
    for output in 0..half {
        let outputs = if output + half < dots.outputs { 2 } else { 1 };
        // SAFETY: both outputs are there.
        unsafe {
            let group = Dots { outputs, ..dots.part(0..1, output..output + 1) };
            group_with::<S, W, 1, 2>(simd, group, half);
        }
    }
}

/// # Safety
/// See [`Dots`]; `rows <= MOST_ROWS`.
#[inline(always)]
unsafe fn block_with<S: Simd, W: Element>(simd: S, dots: Dots<W>) {
    macro_rules! cases {
        ($($rows:literal: $outputs:literal)+) => {
            match dots.rows {
                $($rows => {
                    for start in (0..dots.outputs).step_by($outputs) {
                        let group = start..dots.outputs.min(start + $outputs);
                        // SAFETY: the caller's promise.
                        unsafe { group_with::<S, W, $rows, $outputs>(simd, dots.part(0..$rows, group), 1) };
                    }
                })+
                rows => debug_assert!(rows == 0),
            }
        };
    }
    // As many weight rows at once as leave room for the sums, one vector of each weight row and one of `x`.
    if S::REGISTERS >= 32 {
        cases!(1: 4 2: 4 3: 4 4: 4 5: 4 6: 4 7: 3 8: 3);
    } else {
        cases!(1: 4 2: 4 3: 3 4: 2 5: 2 6: 2 7: 1 8: 1);
    }
}

/// Outputs that lie `spacing` apart.
///
/// # Safety
/// See [`Dots`]; `rows == ROWS` and `1 <= outputs <= OUTPUTS`.
#[inline(always)]
unsafe fn group_with<S: Simd, W: Element, const ROWS: usize, const OUTPUTS: usize>(
    simd: S,
    dots: Dots<W>,
    spacing: usize,
) {
    let Dots { x, inputs, weights, outputs, to, stride, .. } = dots;
    let mut sums = [[simd.splat(0.0); ROWS]; OUTPUTS];
    // A group that is not full computes its last output several times.
    let mut starts = [weights; OUTPUTS];
    for (output, start) in starts.iter_mut().enumerate() {
        *start = weights.wrapping_add(output.min(outputs - 1) * spacing * inputs);
    }
    // A step is a cache line of weights, so that each line is asked for once.
    let step = (CACHE_LINE_BYTES / size_of::<W>()).max(S::LANES);
    // The next group's rows follow on the last row of this one, or on every one.
    let following = if spacing == 1 { OUTPUTS * inputs } else { 0 };
    let ahead = following.max(AHEAD_BYTES / size_of::<W>());
    let whole = inputs - inputs % step;
    // SAFETY: the caller promised the memory.
    unsafe {
        for line in (0..whole).step_by(step) {
            for start in starts {
                simd.prefetch(start.wrapping_add(line + ahead));
            }
            for input in (line..line + step).step_by(S::LANES) {
                let mut w = [simd.splat(0.0); OUTPUTS];
                for (w, start) in w.iter_mut().zip(starts) {
                    *w = W::load(simd, start.add(input));
                }
                #[expect(
                    clippy::needless_range_loop,
                    reason = "the transposed sums stay in registers this way"
                )]
                for row in 0..ROWS {
                    let x = simd.load(x.add(row * inputs + input));
                    for output in 0..OUTPUTS {
                        sums[output][row] = simd.fma(w[output], x, sums[output][row]);
                    }
                }
            }
        }
        for input in (whole..inputs).step_by(S::LANES) {
            let count = S::LANES.min(inputs - input);
            #[expect(clippy::needless_range_loop, reason = "as above")]
            for row in 0..ROWS {
                let x = simd.load_first(x.add(row * inputs + input), count);
                for output in 0..OUTPUTS {
                    let w = W::load_first(simd, starts[output].add(input), count);
                    sums[output][row] = simd.fma(w, x, sums[output][row]);
                }
            }
        }
        for (output, sums) in sums.into_iter().enumerate().take(outputs) {
            for (row, sum) in sums.into_iter().enumerate() {
                *to.add(row * stride + output * spacing) = simd.reduce_add(sum);
            }
        }
    }
}
