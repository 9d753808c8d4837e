//! The gradient of the head's weight, for training it: a second pass, now that each token's softmax is known. A
//! task owns a few rows of the gradient, so that no sums need to be merged.

use candle_core::Result;

use super::{COLUMNS, Chunk, Job, for_each_chunk, padded, tile};
use crate::{
    linear::microkernel::{Left, multiply, tile_columns, tile_rows},
    pool::{self, Disjoint},
    scratch::with_scratch,
    simd::{Simd, dispatch, math},
};

/// `[V, D]`, from the logarithm of each token's sum of exponentials.
pub(super) fn head_gradient(job: &Job<'_>, log_sums: &[f32]) -> Result<Vec<f32>> {
    let mut gradient = vec![0f32; job.vocabulary * job.width];
    for_each_chunk(job, |chunk| {
        with_scratch(chunk.tokens * padded(job.width), |right| {
            let hidden = &job.hidden[chunk.first * job.width..][..chunk.tokens * job.width];
            arrange(hidden, job.width, right);
            let log_sums = &log_sums[chunk.first..chunk.first + chunk.tokens];
            let (right, gradient) = (&*right, Disjoint::new(&mut gradient));
            pool::for_each(job.vocabulary.div_ceil(COLUMNS), &|task| {
                let column = task * COLUMNS;
                let columns = COLUMNS.min(job.vocabulary - column);
                // SAFETY: each task has rows of its own.
                let rows = unsafe { gradient.part(column * job.width, columns * job.width) };
                with_scratch(tile::weights_length(chunk, job.width), |weights| {
                    with_scratch(chunk.tokens * COLUMNS, |logits| {
                        let buffers = [weights, logits, rows];
                        add_columns(job, chunk, (column, columns), log_sums, right, buffers);
                    });
                });
            });
        });
        Ok(())
    })?;
    Ok(gradient)
}

dispatch! {
    /// Hidden states as the right operand of products: `[D / columns, tokens, columns]`.
    fn arrange(hidden: &[f32], width: usize, to: &mut [f32]) = arrange_with;

    fn add_columns(
        job: &Job<'_>, chunk: &Chunk<'_>, place: (usize, usize), log_sums: &[f32], right: &[f32],
        buffers: [&mut [f32]; 3],
    ) = add_columns_with;
}

#[inline(always)]
fn arrange_with<S: Simd>(_: S, hidden: &[f32], width: usize, to: &mut [f32]) {
    let size = tile_columns::<S>();
    let tokens = hidden.len() / width;
    for (tile, to) in to.chunks_exact_mut(tokens * size).enumerate() {
        for (row, to) in hidden.chunks_exact(width).zip(to.chunks_exact_mut(size)) {
            let part = row.get(tile * size..).unwrap_or_default();
            let count = part.len().min(size);
            to[..count].copy_from_slice(&part[..count]);
            to[count..].fill(0.);
        }
    }
}

#[inline(always)]
fn add_columns_with<S: Simd>(
    simd: S,
    job: &Job<'_>,
    chunk: &Chunk<'_>,
    (column, columns): (usize, usize),
    log_sums: &[f32],
    right: &[f32],
    [weights, logits, gradient]: [&mut [f32]; 3],
) {
    tile::products(simd, job, chunk, (column, columns), weights, logits);
    for (token, row) in logits.chunks_exact_mut(COLUMNS).enumerate() {
        tile::finish(simd, job, (column, columns), row);
        let target = job.targets[chunk.first + token] as usize;
        d_logits(
            simd,
            job,
            target.wrapping_sub(column),
            log_sums[token],
            &mut row[..columns.next_multiple_of(S::LANES)],
        );
    }
    let (size, tokens) = (tile_columns::<S>(), chunk.tokens);
    assert!(right.len() >= tokens * padded(job.width) && logits.len() == tokens * COLUMNS);
    let mut sums = [[0f32; 32]; 16];
    let sums = sums.as_flattened_mut();
    for (tile, start) in (0..job.width).step_by(size).enumerate() {
        let count = size.min(job.width - start);
        for first in (0..columns).step_by(tile_rows::<S>()) {
            let rows = tile_rows::<S>().min(columns - first);
            // SAFETY: the logits hold `tokens` steps of `columns` rows, the right operand as many of each tile, and the
            // sums hold the largest tile.
            unsafe {
                let a = Left { start: logits.as_ptr().add(first), row_stride: 1, step_stride: COLUMNS };
                let b = right.as_ptr().add(tile * tokens * size);
                multiply(simd, rows, tokens, a, (b, size), (sums.as_mut_ptr(), size), false);
            }
            for row in 0..rows {
                let to = &mut gradient[(first + row) * job.width + start..][..count];
                to.iter_mut().zip(&sums[row * size..]).for_each(|(to, sum)| *to += sum);
            }
        }
    }
}

/// From a token's logits to their gradients, in place. `target` is the place of its target, if that is in the row.
#[inline(always)]
fn d_logits<S: Simd>(simd: S, job: &Job<'_>, target: usize, log_sum: f32, row: &mut [f32]) {
    let params = &job.params;
    let (scale, smoothing) = (params.logit_scale, params.label_smoothing);
    let slope = |logit: f32| params.soft_cap.map_or(1., |cap| 1. - (logit / cap).powi(2));
    let pull = row.get(target).map(|&logit| scale * (1. - smoothing) * slope(logit));
    let factor = simd.splat(scale * (1. + 2. * params.z_loss * log_sum));
    let even = simd.splat(scale * smoothing / job.vocabulary as f32);
    for start in (0..row.len()).step_by(S::LANES) {
        let place = row[start..start + S::LANES].as_mut_ptr();
        // SAFETY: the slice has a vector's length.
        unsafe {
            let logit = simd.load(place);
            let e = math::weight(simd, simd.sub(logit, simd.splat(log_sum)));
            let mut gradient = simd.sub(simd.mul(e, factor), even);
            if let Some(cap) = params.soft_cap {
                gradient = simd.mul(gradient, tile::cap_slope(simd, logit, cap));
            }
            simd.store(place, gradient);
        }
    }
    if let Some(pull) = pull {
        row[target] -= pull;
    }
}
