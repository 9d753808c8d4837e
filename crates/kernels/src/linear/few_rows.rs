//! Few rows of `x`: each weight is read from memory once, and reading it is what takes the time.
//!
//! Products are summed along K, in lanes: the sums of one row are the same however many rows there are.

use super::cpu::{Call, Product};
use crate::{
    pool,
    scratch::with_scratch,
    simd::{Element, Simd, dispatch},
    view::Floats,
};

/// The most rows of `x` that are multiplied at once.
const MOST_ROWS: usize = 8;

/// Weight rows that are held in a cache while all rows of `x` are multiplied with them.
const TILE: usize = 24;

/// Tasks per thread, if the weights are not too small or too large for that.
const TASKS_PER_THREAD: usize = 16;

/// The size of the weights of a task is in this range.
const TASK_BYTES: std::ops::RangeInclusive<usize> = 16 << 10..=256 << 10;

/// The largest vector.
const MOST_LANES: usize = 16;

pub(super) fn run(call: &Call<'_>) {
    let row_bytes = |product: &Product<'_>| {
        product.layers().map(|layer| layer.weight.size() * call.inputs).sum::<usize>().max(1)
    };
    let bytes: usize = call.products.iter().map(|product| row_bytes(product) * product.outputs).sum();
    let goal = bytes / (pool::threads() * TASKS_PER_THREAD);
    let goal = goal.clamp(*TASK_BYTES.start(), *TASK_BYTES.end());
    // A task is a range of outputs of one product.
    let mut tasks = Vec::new();
    for product in call.products {
        let length = (goal / row_bytes(product)).clamp(1, 4096).next_multiple_of(TILE);
        for start in (0..product.outputs).step_by(length) {
            tasks.push((product, start, length.min(product.outputs - start)));
        }
    }
    pool::for_each(tasks.len(), &|index| {
        let (product, start, count) = tasks[index];
        task(call, product, start, count);
    });
}

fn task(call: &Call<'_>, product: &Product<'_>, start: usize, count: usize) {
    let stride = count.next_multiple_of(MOST_LANES);
    with_scratch(2 * call.rows * stride, |scratch| {
        let (first, second) = scratch.split_at_mut(call.rows * stride);
        for (layer, sums) in product.layers().zip([&mut *first, &mut *second]) {
            let offset = start * call.inputs;
            let x = call.x.as_ptr();
            let (rows, inputs) = (call.rows, call.inputs);
            let to = sums.as_mut_ptr();
            // SAFETY: the weight has `count` rows from `start` on, and the sums are that many per row.
            unsafe {
                match layer.weight {
                    Floats::F32(w) => dots(x, rows, inputs, w.as_ptr().add(offset), count, to, stride),
                    Floats::Bf16(w) => dots(x, rows, inputs, w.as_ptr().add(offset), count, to, stride),
                    Floats::F16(w) => dots(x, rows, inputs, w.as_ptr().add(offset), count, to, stride),
                }
            }
        }
        // SAFETY: both hold `stride` sums per row, and tasks have outputs of their own.
        unsafe { finish(call, product, first.as_ptr(), second.as_ptr(), stride, start, count) };
    });
}

dispatch! {
    /// `to[row · stride + output] = x[row] · weights[output]`
    pub(crate) unsafe fn dots<W: Element>(
        x: *const f32, rows: usize, inputs: usize, weights: *const W, outputs: usize,
        to: *mut f32, stride: usize,
    ) = dots_with;

    unsafe fn finish(
        call: &Call<'_>, product: &Product<'_>, first: *const f32, second: *const f32,
        stride: usize, start: usize, count: usize,
    ) = finish_with;
}

/// # Safety
/// As for [`Product::finish`], for all rows of the call.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn finish_with<S: Simd>(
    simd: S,
    call: &Call<'_>,
    product: &Product<'_>,
    first: *const f32,
    second: *const f32,
    stride: usize,
    start: usize,
    count: usize,
) {
    let values = if product.gate.is_some() { second } else { first };
    for row in 0..call.rows {
        // SAFETY: the caller's promise.
        unsafe {
            let sums = (first.add(row * stride), values.add(row * stride));
            product.finish(simd, sums, row, start, count);
        }
    }
}

/// `to[row · stride + output] = x[row] · weights[output]`
///
/// # Safety
/// `x` holds `rows`, `weights` holds `outputs` rows of `inputs` numbers; `to` is writable as described.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn dots_with<S: Simd, W: Element>(
    simd: S,
    x: *const f32,
    rows: usize,
    inputs: usize,
    weights: *const W,
    outputs: usize,
    to: *mut f32,
    stride: usize,
) {
    let blocks = rows.div_ceil(MOST_ROWS);
    for tile in (0..outputs).step_by(TILE) {
        let count = TILE.min(outputs - tile);
        for block in 0..blocks {
            let (start, end) = (rows * block / blocks, rows * (block + 1) / blocks);
            // SAFETY: the caller's promise.
            unsafe {
                let x = x.add(start * inputs);
                let weights = weights.add(tile * inputs);
                let to = to.add(start * stride + tile);
                block_with(simd, x, end - start, inputs, weights, count, to, stride);
            }
        }
    }
}

/// # Safety
/// As for [`dots_with`], with `rows <= MOST_ROWS`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn block_with<S: Simd, W: Element>(
    simd: S,
    x: *const f32,
    rows: usize,
    inputs: usize,
    weights: *const W,
    outputs: usize,
    to: *mut f32,
    stride: usize,
) {
    macro_rules! cases {
        ($($rows:literal: $outputs:literal)+) => {
            match rows {
                $($rows => {
                    for start in (0..outputs).step_by($outputs) {
                        let count = $outputs.min(outputs - start);
                        // SAFETY: the caller's promise.
                        unsafe {
                            let weights = weights.add(start * inputs);
                            let to = to.add(start);
                            group::<S, W, $rows, $outputs>(simd, x, inputs, weights, count, to, stride);
                        }
                    }
                })+
                _ => debug_assert!(rows == 0),
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

/// # Safety
/// As for [`dots_with`], with `1 <= outputs <= OUTPUTS`.
#[inline(always)]
unsafe fn group<S: Simd, W: Element, const ROWS: usize, const OUTPUTS: usize>(
    simd: S,
    x: *const f32,
    inputs: usize,
    weights: *const W,
    outputs: usize,
    to: *mut f32,
    stride: usize,
) {
    let mut sums = [[simd.splat(0.0); ROWS]; OUTPUTS];
    // A group that is not full computes its last output several times.
    let mut starts = [weights; OUTPUTS];
    for (output, start) in starts.iter_mut().enumerate() {
        *start = weights.wrapping_add(output.min(outputs - 1) * inputs);
    }
    let whole = inputs - inputs % S::LANES;
    // SAFETY: the caller promised the memory.
    unsafe {
        let mut input = 0;
        while input < whole {
            let mut w = [simd.splat(0.0); OUTPUTS];
            for (w, start) in w.iter_mut().zip(starts) {
                *w = W::load(simd, start.add(input));
                // The same place in the next group.
                simd.prefetch(start.wrapping_add(input + OUTPUTS * inputs));
            }
            #[expect(clippy::needless_range_loop, reason = "the transposed sums stay in registers this way")]
            for row in 0..ROWS {
                let x = simd.load(x.add(row * inputs + input));
                for output in 0..OUTPUTS {
                    sums[output][row] = simd.fma(w[output], x, sums[output][row]);
                }
            }
            input += S::LANES;
        }
        if whole < inputs {
            #[expect(clippy::needless_range_loop, reason = "as above")]
            for row in 0..ROWS {
                let x = simd.load_first(x.add(row * inputs + whole), inputs - whole);
                for output in 0..OUTPUTS {
                    let w = W::load_first(simd, starts[output].add(whole), inputs - whole);
                    sums[output][row] = simd.fma(w, x, sums[output][row]);
                }
            }
        }
        for (output, sums) in sums.into_iter().enumerate().take(outputs) {
            for (row, sum) in sums.into_iter().enumerate() {
                *to.add(row * stride + output) = simd.reduce_add(sum);
            }
        }
    }
}
