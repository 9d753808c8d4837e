//! The CPU implementation: one pass over a row for its sums, relative to a number near its mean, so that the variance loses
//! no digits to a large one, and one for the result. Memory has little to do in the second pass, and so brings the next
//! rows; in the first, it makes room for what the second will write.
//!
//! Backward, with `f` the row's factor, `c = x − mean` and `g = dy · w`:
//! `dx = f · (g − mean(g) − c · f² · mean(g · c))`, `dw = Σ dy · c · f` and `db = Σ dy` over the rows.

use std::ops::Range;

use candle_core::{Device, Result, Tensor};

use super::LayerNorm;
use crate::{
    fresh::Fresh,
    output::{Output, filled, sum_of_parts},
    pool,
    simd::{Simd, dispatch, for_vectors, load, store},
    view::View,
};

/// Elements per task: enough to outweigh handing it to another thread.
const TASK: usize = 16 * 1024;

/// Slices of one call: the gradient is empty in the forward pass.
struct Job<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    epsilon: f32,
    output: Output<f32>,
}

pub(super) fn layer_norm(x: &Tensor, norm: &LayerNorm) -> Result<Fresh> {
    let (weight, bias) = parameters(norm)?;
    let shape = x.shape();
    let x = View::new(x);
    let x = x.f32s("layer_norm: `x`")?;
    let run = |output| {
        let job = Job { x, dy: &[], weight: &weight, bias: bias.as_deref(), epsilon: norm.epsilon, output };
        each_part(&job, &|rows| forward_rows(&job, rows));
    };
    // SAFETY: `forward_rows` writes every row.
    let y = unsafe { filled(x.len(), run) };
    Ok(Fresh::from_vec(y, shape))
}

pub(super) fn backward(x: &Tensor, norm: &LayerNorm, dy: &Tensor) -> Result<Fresh> {
    let (weight, _) = parameters(norm)?;
    let shape = x.shape();
    let [x, dy] = [x, dy].map(View::new);
    let (x, dy) = (x.f32s("layer_norm_backward: `x`")?, dy.f32s("layer_norm_backward: `dy`")?);
    let run = |output| {
        let job = Job { x, dy, weight: &weight, bias: None, epsilon: norm.epsilon, output };
        each_part(&job, &|rows| backward_rows(&job, rows));
    };
    // SAFETY: `backward_rows` writes every row.
    let dx = unsafe { filled(x.len(), run) };
    Ok(Fresh::from_vec(dx, shape))
}

pub(super) fn weight_backward(x: &Tensor, norm: &LayerNorm, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let width = norm.weight.elem_count();
    let [x, dy] = [x, dy].map(View::new);
    let x = x.f32s("layer_norm_weight_backward: `x`")?;
    let dy = dy.f32s("layer_norm_weight_backward: `dy`")?;
    let [dw, db] = summed(x.len() / width.max(1), width, &|rows, weight_sum, bias_sum| {
        weight_rows(x, dy, norm.epsilon, rows, weight_sum, bias_sum);
    });
    Ok((Tensor::from_vec(dw, width, &Device::Cpu)?, Tensor::from_vec(db, width, &Device::Cpu)?))
}

/// [`backward`] and [`weight_backward`] at once: a few rows after the other, while the cache holds them.
pub(super) fn backward_all(x: &Tensor, norm: &LayerNorm, dy: &Tensor) -> Result<(Fresh, Tensor, Tensor)> {
    let (weight, _) = parameters(norm)?;
    let (shape, width) = (x.shape(), weight.len());
    let [x, dy] = [x, dy].map(View::new);
    let (x, dy) = (x.f32s("layer_norm_backward_all: `x`")?, dy.f32s("layer_norm_backward_all: `dy`")?);
    let mut sums = [Vec::new(), Vec::new()];
    let run = |output| {
        let job = Job { x, dy, weight: &weight, bias: None, epsilon: norm.epsilon, output };
        sums = summed(x.len() / width.max(1), width, &|rows, weight_sum, bias_sum| {
            all_rows(&job, rows, weight_sum, bias_sum);
        });
    };
    // SAFETY: `all_rows` writes every row.
    let dx = unsafe { filled(x.len(), run) };
    let [dw, db] = sums;
    let (dw, db) = (Tensor::from_vec(dw, width, &Device::Cpu)?, Tensor::from_vec(db, width, &Device::Cpu)?);
    Ok((Fresh::from_vec(dx, shape), dw, db))
}

/// Shares of the rows that are summed apart: a fixed number, so that the result does not depend on the threads.
const PARTS: usize = 16;

/// Adds what a range of rows gives to the sums of weight and bias.
type AddToSums<'a> = dyn Fn(Range<usize>, &mut [f32], &mut [f32]) + Sync + 'a;

/// What `add` adds to the sums of weight and bias for ranges of rows.
fn summed(rows: usize, width: usize, add: &AddToSums<'_>) -> [Vec<f32>; 2] {
    let parts = rows.clamp(1, PARTS);
    let run = |output: Output<f32>| {
        pool::for_each(parts, &|part| {
            // SAFETY: each part has two rows of the output of its own.
            let sums = unsafe { std::slice::from_raw_parts_mut(output.at(part * 2 * width), 2 * width) };
            sums.fill(0.);
            let (weight_sum, bias_sum) = sums.split_at_mut(width);
            add(part * rows / parts..(part + 1) * rows / parts, weight_sum, bias_sum);
        });
    };
    // SAFETY: every part is written.
    let mut weight_sum = sum_of_parts(unsafe { filled(parts * 2 * width, run) }, 2 * width);
    let bias_sum = weight_sum.split_off(width);
    [weight_sum, bias_sum]
}

/// Weight and bias, widened.
fn parameters(norm: &LayerNorm) -> Result<(Vec<f32>, Option<Vec<f32>>)> {
    let wide = |name, parameter| -> Result<Vec<f32>> { Ok(View::new(parameter).floats(name)?.to_f32s()) };
    let weight = wide("layer_norm: `weight`", &norm.weight)?;
    let bias = norm.bias.as_ref().map(|bias| wide("layer_norm: `bias`", bias)).transpose()?;
    Ok((weight, bias))
}

/// Splits the rows over the pool.
fn each_part(job: &Job<'_>, run: &(dyn Fn(Range<usize>) + Sync)) {
    let width = job.weight.len().max(1);
    let rows = job.x.len() / width;
    let rows_per_task = (TASK / width).max(1);
    let tasks = rows.div_ceil(rows_per_task);
    if tasks <= 1 {
        return run(0..rows);
    }
    pool::for_each(tasks, &|task| run(task * rows_per_task..rows.min((task + 1) * rows_per_task)));
}

dispatch! {
    fn forward_rows(job: &Job<'_>, rows: Range<usize>) = forward_rows_with;
    fn backward_rows(job: &Job<'_>, rows: Range<usize>) = backward_rows_with;
    fn weight_rows(
        x: &[f32],
        dy: &[f32],
        epsilon: f32,
        rows: Range<usize>,
        weight_sum: &mut [f32],
        bias_sum: &mut [f32]
    ) = weight_rows_with;
    fn all_rows(
        job: &Job<'_>,
        rows: Range<usize>,
        weight_sum: &mut [f32],
        bias_sum: &mut [f32]
    ) = all_rows_with;
}

#[inline(always)]
fn forward_rows_with<S: Simd>(simd: S, job: &Job<'_>, rows: Range<usize>) {
    let width = job.weight.len();
    for row in rows {
        let x = &job.x[row * width..][..width];
        // SAFETY: the output is as long as `x`, and no two rows overlap.
        let y = unsafe { std::slice::from_raw_parts_mut(job.output.at(row * width), width) };
        let (mean, factor) = statistics(simd, x, job.epsilon, Some(y.as_mut_ptr()));
        let (mean, factor) = (simd.splat(mean), simd.splat(factor));
        for_vectors!(S, width, |column, count| {
            // The next row, which memory fetches meanwhile.
            simd.prefetch(x.as_ptr().wrapping_add(width + column));
            let normed = simd.mul(simd.sub(load(simd, x, column, count), mean), factor);
            let gain = load(simd, job.weight, column, count);
            let shift = match job.bias {
                Some(bias) => load(simd, bias, column, count),
                None => simd.splat(0.),
            };
            store(simd, y, column, count, simd.fma(normed, gain, shift));
        });
    }
}

#[inline(always)]
fn backward_rows_with<S: Simd>(simd: S, job: &Job<'_>, rows: Range<usize>) {
    let pairs = rows.start + rows.len() / 2 * 2;
    for row in (rows.start..pairs).step_by(2) {
        backward_of::<S, 2, false>(simd, job, row, &mut [], &mut []);
    }
    if pairs < rows.end {
        backward_of::<S, 1, false>(simd, job, pairs, &mut [], &mut []);
    }
}

#[inline(always)]
fn all_rows_with<S: Simd>(
    simd: S,
    job: &Job<'_>,
    rows: Range<usize>,
    weight_sum: &mut [f32],
    bias_sum: &mut [f32],
) {
    let pairs = rows.start + rows.len() / 2 * 2;
    for row in (rows.start..pairs).step_by(2) {
        backward_of::<S, 2, true>(simd, job, row, weight_sum, bias_sum);
    }
    if pairs < rows.end {
        backward_of::<S, 1, true>(simd, job, pairs, weight_sum, bias_sum);
    }
}

/// The gradient of some rows, and with `SUMS` what they add to those of weight and bias. More rows at a time would leave
/// the nearest cache, which keeps few lines of addresses that lie whole pages apart.
#[inline(always)]
fn backward_of<S: Simd, const ROWS: usize, const SUMS: bool>(
    simd: S,
    job: &Job<'_>,
    first: usize,
    weight_sum: &mut [f32],
    bias_sum: &mut [f32],
) {
    let width = job.weight.len();
    let x: [&[f32]; ROWS] = std::array::from_fn(|row| &job.x[(first + row) * width..][..width]);
    let dy: [&[f32]; ROWS] = std::array::from_fn(|row| &job.dy[(first + row) * width..][..width]);
    let mut means = [simd.splat(0.); ROWS];
    let (mut factors, mut pulls, mut offsets) = (means, means, means);
    // SAFETY: the output is as long as `x`, and no two rows overlap.
    let dx = unsafe { std::slice::from_raw_parts_mut(job.output.at(first * width), ROWS * width) };
    for row in 0..ROWS {
        let to = Some(dx[row * width..].as_mut_ptr());
        let of = gradient_statistics(simd, x[row], dy[row], job.weight, job.epsilon, to);
        means[row] = simd.splat(of.mean);
        factors[row] = simd.splat(of.factor);
        pulls[row] = simd.splat(-of.factor * (of.factor * (of.factor * of.products) / width as f32));
        offsets[row] = simd.splat(-of.factor * of.gradients / width as f32);
    }
    let (weight_sum, bias_sum) =
        if SUMS { (&mut weight_sum[..width], &mut bias_sum[..width]) } else { (weight_sum, bias_sum) };
    for_vectors!(S, width, |column, count| {
        let gain = load(simd, job.weight, column, count);
        let mut totals = [gain; 2];
        if SUMS {
            totals = [load(simd, weight_sum, column, count), load(simd, bias_sum, column, count)];
        }
        for row in 0..ROWS {
            // The next rows, which memory fetches meanwhile.
            simd.prefetch(x[row].as_ptr().wrapping_add(ROWS * width + column));
            simd.prefetch(dy[row].as_ptr().wrapping_add(ROWS * width + column));
            let dy = load(simd, dy[row], column, count);
            let centred = simd.sub(load(simd, x[row], column, count), means[row]);
            let scaled = simd.mul(dy, factors[row]);
            let slope = simd.fma(scaled, gain, simd.fma(centred, pulls[row], offsets[row]));
            store(simd, &mut dx[row * width..][..width], column, count, slope);
            if SUMS {
                totals = [simd.fma(centred, scaled, totals[0]), simd.add(dy, totals[1])];
            }
        }
        if SUMS {
            store(simd, weight_sum, column, count, totals[0]);
            store(simd, bias_sum, column, count, totals[1]);
        }
    });
}

#[inline(always)]
fn weight_rows_with<S: Simd>(
    simd: S,
    x: &[f32],
    dy: &[f32],
    epsilon: f32,
    rows: Range<usize>,
    weight_sum: &mut [f32],
    bias_sum: &mut [f32],
) {
    let quads = rows.start + rows.len() / 4 * 4;
    for row in (rows.start..quads).step_by(4) {
        add_rows::<S, 4>(simd, x, dy, epsilon, row, weight_sum, bias_sum);
    }
    for row in quads..rows.end {
        add_rows::<S, 1>(simd, x, dy, epsilon, row, weight_sum, bias_sum);
    }
}

/// Adds what some rows contribute: several at a time, so that the sums are not read and written for each.
#[inline(always)]
fn add_rows<S: Simd, const ROWS: usize>(
    simd: S,
    x: &[f32],
    dy: &[f32],
    epsilon: f32,
    first: usize,
    weight_sum: &mut [f32],
    bias_sum: &mut [f32],
) {
    let width = weight_sum.len();
    let [mut means, mut factors] = [[simd.splat(0.); ROWS]; 2];
    for row in 0..ROWS {
        let (mean, factor) = statistics(simd, &x[(first + row) * width..][..width], epsilon, None);
        means[row] = simd.splat(mean);
        factors[row] = simd.splat(factor);
    }
    for_vectors!(S, width, |column, count| {
        let mut weight_total = load(simd, weight_sum, column, count);
        let mut bias_total = load(simd, bias_sum, column, count);
        for row in 0..ROWS {
            let place = (first + row) * width + column;
            let centred = simd.sub(load(simd, x, place, count), means[row]);
            let dy = load(simd, dy, place, count);
            weight_total = simd.fma(centred, simd.mul(dy, factors[row]), weight_total);
            bias_total = simd.add(dy, bias_total);
        }
        store(simd, weight_sum, column, count, weight_total);
        store(simd, bias_sum, column, count, bias_total);
    });
}

/// What the gradient of a row needs to know of it.
struct Statistics {
    mean: f32,
    factor: f32,
    /// `Σ g`
    gradients: f32,
    /// `Σ g · (x − mean)`
    products: f32,
}

/// Mean and factor of a row; asks for the place of its result, if there is one.
#[inline(always)]
fn statistics<S: Simd>(simd: S, x: &[f32], epsilon: f32, to: Option<*mut f32>) -> (f32, f32) {
    let mut centre = centre(simd, x);
    for is_last in [false, true] {
        let [sum, squares] = sums(simd, x, centre, to);
        if let Some((mean, factor)) = moments(x.len(), centre, sum, squares, epsilon, is_last) {
            return (mean, factor);
        }
        centre += sum / x.len() as f32;
    }
    unreachable!("the last try counts")
}

#[inline(always)]
fn gradient_statistics<S: Simd>(
    simd: S,
    x: &[f32],
    dy: &[f32],
    weight: &[f32],
    epsilon: f32,
    to: Option<*mut f32>,
) -> Statistics {
    let mut centre = centre(simd, x);
    for is_last in [false, true] {
        let [sum, squares, gradients, products] = gradient_sums(simd, x, dy, weight, centre, to);
        if let Some((mean, factor)) = moments(x.len(), centre, sum, squares, epsilon, is_last) {
            let products = products - (mean - centre) * gradients;
            return Statistics { mean, factor, gradients, products };
        }
        centre += sum / x.len() as f32;
    }
    unreachable!("the last try counts")
}

/// A number near the mean of a row, as far as its first numbers tell.
#[inline(always)]
fn centre<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let count = S::LANES.min(x.len());
    simd.reduce_add(load(simd, x, 0, count)) / count.max(1) as f32
}

/// Mean and factor from `Σ (x − centre)` and `Σ (x − centre)²`. None where the centre is so far from the mean that the
/// difference of the two would lose more than two bits, unless this is the last try.
#[inline(always)]
fn moments(
    width: usize,
    centre: f32,
    sum: f32,
    squares: f32,
    epsilon: f32,
    is_last: bool,
) -> Option<(f32, f32)> {
    let share = 1. / width as f32;
    let offset = sum * share;
    let variance = (squares * share - offset * offset).max(0.);
    let is_far = offset * offset > 3. * variance;
    (is_last || !is_far).then(|| (centre + offset, 1. / (variance + epsilon).sqrt()))
}

/// `Σ (x − centre)` and `Σ (x − centre)²`, in two chains so that additions wait less for each other. Asks for the
/// place of the row's result, while memory has only this to do.
#[inline(always)]
fn sums<S: Simd>(simd: S, x: &[f32], centre: f32, to: Option<*mut f32>) -> [f32; 2] {
    let (width, zero) = (x.len(), simd.splat(0.));
    let [mut sums, mut squares] = [[zero; 2]; 2];
    let centres = simd.splat(centre);
    let mut column = 0;
    while column + 2 * S::LANES <= width {
        for chain in 0..2 {
            let column = column + chain * S::LANES;
            if let Some(to) = to {
                simd.prefetch_to_write(to.wrapping_add(column));
            }
            // SAFETY: the vectors are within the row.
            let centred = simd.sub(unsafe { simd.load(x.as_ptr().add(column)) }, centres);
            sums[chain] = simd.add(sums[chain], centred);
            squares[chain] = simd.fma(centred, centred, squares[chain]);
        }
        column += 2 * S::LANES;
    }
    while column < width {
        let count = S::LANES.min(width - column);
        let centred = simd.sub(load(simd, x, column, count), first_lanes(simd, centre, count));
        sums[0] = simd.add(sums[0], centred);
        squares[0] = simd.fma(centred, centred, squares[0]);
        column += count;
    }
    [add_lanes(simd, sums), add_lanes(simd, squares)]
}

/// [`sums`], `Σ g` and `Σ g · (x − centre)`.
#[inline(always)]
fn gradient_sums<S: Simd>(
    simd: S,
    x: &[f32],
    dy: &[f32],
    weight: &[f32],
    centre: f32,
    to: Option<*mut f32>,
) -> [f32; 4] {
    let (width, zero) = (weight.len(), simd.splat(0.));
    let (x, dy) = (&x[..width], &dy[..width]);
    let [mut sums, mut squares, mut gradients, mut products] = [[zero; 2]; 4];
    let centres = simd.splat(centre);
    let mut column = 0;
    while column + 2 * S::LANES <= width {
        for chain in 0..2 {
            let column = column + chain * S::LANES;
            if let Some(to) = to {
                simd.prefetch_to_write(to.wrapping_add(column));
            }
            // SAFETY: the vectors are within the rows, which are as long as the weight.
            let (value, g) = unsafe {
                let g = simd.mul(simd.load(dy.as_ptr().add(column)), simd.load(weight.as_ptr().add(column)));
                (simd.load(x.as_ptr().add(column)), g)
            };
            let centred = simd.sub(value, centres);
            sums[chain] = simd.add(sums[chain], centred);
            squares[chain] = simd.fma(centred, centred, squares[chain]);
            gradients[chain] = simd.add(gradients[chain], g);
            products[chain] = simd.fma(g, centred, products[chain]);
        }
        column += 2 * S::LANES;
    }
    while column < width {
        let count = S::LANES.min(width - column);
        let centred = simd.sub(load(simd, x, column, count), first_lanes(simd, centre, count));
        let g = simd.mul(load(simd, dy, column, count), load(simd, weight, column, count));
        sums[0] = simd.add(sums[0], centred);
        squares[0] = simd.fma(centred, centred, squares[0]);
        gradients[0] = simd.add(gradients[0], g);
        products[0] = simd.fma(g, centred, products[0]);
        column += count;
    }
    [add_lanes(simd, sums), add_lanes(simd, squares), add_lanes(simd, gradients), add_lanes(simd, products)]
}

/// The sum of all lanes of all chains.
#[inline(always)]
fn add_lanes<S: Simd, const CHAINS: usize>(simd: S, chains: [S::Vector; CHAINS]) -> f32 {
    let mut sum = chains[0];
    for chain in &chains[1..] {
        sum = simd.add(sum, *chain);
    }
    simd.reduce_add(sum)
}

/// The value in the first `count` lanes, zero in the others.
#[inline(always)]
fn first_lanes<S: Simd>(simd: S, value: f32, count: usize) -> S::Vector {
    load(simd, &[value; 16], 0, count)
}
