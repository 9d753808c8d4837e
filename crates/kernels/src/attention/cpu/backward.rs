//! The backward pass: scores are computed again, tile by tile, from queries, keys and the forward pass's lse.
//!
//! With the weights `P = exp(score − lse)` and `dP = d_out · Vᵀ`: `dV = Pᵀ · d_out`,
//! `dS = P ∘ (dP − Σ out · d_out) ∘ slope of the cap`, `dK = scale · dSᵀ · Q` and `dQ = scale · dS · K`.
//!
//! A task is a range of keys of one head, against all rows that see one of them. It owns the gradients of its
//! keys. Several ranges see the same queries: the first one writes their gradient in its place and the others write
//! sums of their own, which are added at the end, in the order of the ranges. Nothing depends on the threads.

mod kernel;
mod plan;
mod sums;
mod work;

use super::{SMALL, plan::Extent};
use crate::{
    attention::AttentionParams, output::Output, pool, scratch::with_scratch, simd::dispatch,
    view::StridedRows,
};
use plan::Plan;
use work::Work;

/// The arguments of a call.
pub(super) struct Call<'a> {
    pub(super) queries: StridedRows<'a>,
    pub(super) keys: StridedRows<'a>,
    pub(super) values: StridedRows<'a>,
    pub(super) out: StridedRows<'a>,
    pub(super) d_out: StridedRows<'a>,
    /// `[H, T]`
    pub(super) lse: &'a [f32],
    pub(super) rows: usize,
    pub(super) heads: usize,
    pub(super) groups: usize,
    pub(super) head_dim: usize,
    pub(super) params: AttentionParams,
    /// First row and shape of each sequence.
    pub(super) segments: Vec<(usize, Extent)>,
}

/// Where results go: `[T, H, D]` and twice `[T, G, D]`, dense.
#[derive(Clone, Copy)]
pub(super) struct Gradients {
    pub(super) d_queries: Output<f32>,
    pub(super) d_keys: Output<f32>,
    pub(super) d_values: Output<f32>,
}

/// Rows whose `Σ out · d_out` one task computes, and rows whose sums one task adds.
const ROWS: usize = 64;

/// Writes all gradients.
pub(super) fn run(call: &Call<'_>, gradients: Gradients) {
    let plan = Plan::new(call);
    with_scratch(call.heads * call.rows, |deltas| {
        let to = Output::new(deltas.as_mut_ptr());
        for_each(call.rows.div_ceil(ROWS), call.rows * call.heads * call.head_dim, &|index| {
            let rows = index * ROWS..call.rows.min((index + 1) * ROWS);
            // SAFETY: each task writes the deltas of its own rows.
            unsafe { deltas_of(call, rows, to) };
        });
        let deltas = &*deltas;
        with_scratch(plan.partial_length, |partials| {
            let partials = Output::new(partials.as_mut_ptr());
            let order = plan.order(pool::threads());
            for_each(order.len(), plan.work * call.head_dim, &|index| {
                let (range, group) = order[index];
                with_scratch(Work::scratch_length(call.head_dim, &plan.ranges[range]), |scratch| {
                    // SAFETY: a task of the plan, which alone writes its keys' gradients and its sums.
                    unsafe { run_task(call, gradients, &plan, (range, group), deltas, partials, scratch) };
                });
            });
            let blocks = plan.blocks_to_add(call, ROWS);
            for_each(blocks.len(), plan.partial_length, &|index| {
                let (segment, tokens) = blocks[index].clone();
                // SAFETY: all sums are written, and each task adds to its own rows.
                unsafe { add_sums(call, &plan, segment, tokens, partials, gradients.d_queries) };
            });
        });
    });
}

dispatch! {
    unsafe fn deltas_of(call: &Call<'_>, rows: std::ops::Range<usize>, deltas: Output<f32>) = sums::deltas_with;

    unsafe fn run_task(
        call: &Call<'_>, gradients: Gradients, plan: &Plan, task: (usize, usize),
        deltas: &[f32], partials: Output<f32>, scratch: &mut [f32],
    ) = kernel::run_task_with;

    unsafe fn add_sums(
        call: &Call<'_>, plan: &Plan, segment: usize, tokens: std::ops::Range<usize>,
        partials: Output<f32>, d_queries: Output<f32>,
    ) = sums::add_with;
}

/// Spreads tasks over the pool unless there is little to do.
fn for_each(tasks: usize, work: usize, task: &(dyn Fn(usize) + Sync)) {
    if work < SMALL { (0..tasks).for_each(task) } else { pool::for_each(tasks, task) }
}
