//! The segments of a chunk put together: losses and gradients of its tokens.

use super::{
    Chunk, Job, Segments,
    segment::{Statistics, SumShape},
};
use crate::{
    linear::microkernel::tile_columns,
    pool::{self, Disjoint},
    simd::{Element, Simd, dispatch},
    view::Floats,
};

/// Tokens per task.
const TASK: usize = 8;

/// What the segments found.
pub(super) struct Parts<'a> {
    pub(super) chunk: &'a Chunk<'a>,
    pub(super) segments: Segments,
    /// `[segments, tokens]`
    pub(super) statistics: &'a [Statistics],
    pub(super) shape: SumShape,
    /// `[segments, ..]`, of that shape.
    pub(super) sums: &'a [f32],
}

/// Writes the losses and gradients of the tokens to `rows` of the results, and their logarithms of sums.
pub(super) fn merge(
    job: &Job<'_>,
    parts: &Parts<'_>,
    rows: &[u32],
    losses: &mut [f32],
    log_sums: &mut [f32],
    d_hidden: Option<&mut [f32]>,
) {
    let (losses, log_sums) = (Disjoint::new(losses), Disjoint::new(log_sums));
    let d_hidden = d_hidden.map(Disjoint::new);
    let tokens = parts.chunk.tokens;
    pool::for_each(tokens.div_ceil(TASK), &|task| {
        let mut coefficients = vec![0f32; parts.segments.count];
        let first = task * TASK;
        for (token, row) in (first..tokens.min(first + TASK)).zip(&rows[first..]) {
            let row = *row as usize;
            let merged = merge_token(job, parts, token, &mut coefficients);
            // SAFETY: each token has a place of its own.
            unsafe {
                losses.part(row, 1)[0] = merged.loss as f32;
                log_sums.part(token, 1)[0] = merged.log_sum as f32;
            }
            if let Some(d_hidden) = &d_hidden {
                // SAFETY: as above.
                let to = unsafe { d_hidden.part(row * job.width, job.width) };
                gradient(job, parts, token, merged.target, &coefficients, to);
            }
        }
    });
}

struct Merged {
    loss: f64,
    /// `log Σ exp(logit)`
    log_sum: f64,
    /// The target's logit.
    target: f32,
}

/// The loss of a token, and what to multiply the sums of each segment with.
fn merge_token(job: &Job<'_>, parts: &Parts<'_>, token: usize, coefficients: &mut [f32]) -> Merged {
    let tokens = parts.chunk.tokens;
    let statistics = || (0..parts.segments.count).map(|segment| parts.statistics[segment * tokens + token]);
    let maximum = statistics().fold(f32::NEG_INFINITY, |maximum, part| maximum.max(part.maximum));
    let weight = |part: &Statistics| f64::from(part.maximum - maximum).exp();
    let sum: f64 = statistics().map(|part| f64::from(part.sum) * weight(&part)).sum();
    let total: f64 = statistics().map(|part| f64::from(part.total)).sum();
    let target: f32 = statistics().map(|part| part.target).sum();

    let params = &job.params;
    let (smoothing, z_loss) = (f64::from(params.label_smoothing), f64::from(params.z_loss));
    let log_sum = f64::from(maximum) + sum.ln();
    let expected = (1. - smoothing) * f64::from(target) + smoothing * total / job.vocabulary as f64;
    let loss = log_sum - expected + z_loss * log_sum * log_sum;
    let factor = f64::from(params.logit_scale) * (1. + 2. * z_loss * log_sum) / sum;
    for (coefficient, part) in coefficients.iter_mut().zip(statistics()) {
        *coefficient = (factor * weight(&part)) as f32;
    }
    Merged { loss, log_sum, target }
}

fn gradient(
    job: &Job<'_>,
    parts: &Parts<'_>,
    token: usize,
    target_logit: f32,
    coefficients: &[f32],
    to: &mut [f32],
) {
    let params = &job.params;
    let slope = params.soft_cap.map_or(1., |cap| 1. - (target_logit / cap).powi(2));
    let even = -params.logit_scale * params.label_smoothing / job.vocabulary as f32;
    let pull = -params.logit_scale * (1. - params.label_smoothing) * slope;
    let row = job.targets[parts.chunk.first + token] as usize * job.width;
    let row = row..row + job.width;
    match job.weight {
        Floats::F32(weight) => combine(parts, token, coefficients, even, pull, &weight[row], to),
        Floats::Bf16(weight) => combine(parts, token, coefficients, even, pull, &weight[row], to),
        Floats::F16(weight) => combine(parts, token, coefficients, even, pull, &weight[row], to),
    }
}

dispatch! {
    /// `to = Σ coefficient · sum + even · Σ even sum + pull · target` over the segments.
    fn combine<W: Element>(
        parts: &Parts<'_>, token: usize, coefficients: &[f32], even: f32, pull: f32, target: &[W], to: &mut [f32],
    ) = combine_with;
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn combine_with<S: Simd, W: Element>(
    simd: S,
    parts: &Parts<'_>,
    token: usize,
    coefficients: &[f32],
    even: f32,
    pull: f32,
    target: &[W],
    to: &mut [f32],
) {
    let (shape, size) = (parts.shape, tile_columns::<S>());
    let (even, pull) = (simd.splat(even), simd.splat(pull));
    for start in (0..to.len()).step_by(S::LANES) {
        let (tile, lane, count) = (start / size, start % size, S::LANES.min(to.len() - start));
        // SAFETY: the slices have `count` numbers from `start` on.
        let target = unsafe { W::load_first(simd, target[start..start + count].as_ptr(), count) };
        let mut sum = simd.mul(target, pull);
        for (segment, &coefficient) in coefficients.iter().enumerate() {
            let sums = &parts.sums[segment * shape.total()..(segment + 1) * shape.total()];
            let place = (tile * shape.tokens + token) * size + lane;
            // SAFETY: a vector of the slice.
            let part = unsafe { simd.load(sums[place..place + S::LANES].as_ptr()) };
            sum = simd.fma(part, simd.splat(coefficient), sum);
            if shape.even > 0 {
                let row = if shape.even > 1 { token } else { 0 };
                let place = shape.first() + (tile * shape.even + row) * size + lane;
                // SAFETY: as above.
                let part = unsafe { simd.load(sums[place..place + S::LANES].as_ptr()) };
                sum = simd.fma(part, even, sum);
            }
        }
        // SAFETY: as above.
        unsafe { simd.store_first(to[start..start + count].as_mut_ptr(), sum, count) };
    }
}
