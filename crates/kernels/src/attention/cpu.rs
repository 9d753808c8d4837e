//! The CPU implementation: online softmax over blocks of keys, read where they lie in their chunks.

mod kernel;
mod merge;
mod plan;
mod product;

use std::cell::RefCell;

use candle_core::{Device, Result, Tensor};

use super::{AttentionParams, Segment};
use crate::{
    host::{HostSlice, Output, filled},
    pool,
};
use kernel::{Cached, Call, Scratch};
use plan::{Extent, Plan};

/// Numbers (of keys, or of partial results) that one thread reads alone rather than waking others.
const SMALL: usize = 16 * 1024;

thread_local! {
    /// Partial results; kept from call to call because fresh memory is slow at first touch.
    static PARTIALS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
}

pub(super) fn attention(
    queries: &Tensor,
    segments: &[Segment<'_>],
    params: AttentionParams,
) -> Result<Tensor> {
    let (_rows, heads, head_dim) = queries.dims3()?;
    let elements = HostSlice::<f32>::read(queries, "attention", "queries")?;
    let locked = segments.iter().map(read_chunks).collect::<Result<Vec<_>>>()?;
    let segments: Vec<_> = segments
        .iter()
        .zip(&locked)
        .map(|(segment, chunks)| cached(heads, segment, chunks, params))
        .collect();
    let plan = Plan::new(segments.iter().map(|segment| &segment.extent), head_dim);
    let output = PARTIALS.with_borrow_mut(|partials| {
        if partials.len() < plan.partial_length {
            partials.resize(plan.partial_length, 0.);
        }
        let partials = Output::new(partials.as_mut_ptr());
        let fill = |output| {
            let call = Call { queries: &elements, heads, head_dim, params, segments, output, partials };
            run(&call, &plan);
        };
        // SAFETY: the plan's items and merges together write every row of every head.
        unsafe { filled(elements.len(), fill) }
    });
    Tensor::from_vec(output, queries.shape(), &Device::Cpu)
}

fn run(call: &Call<'_>, plan: &Plan) {
    for_each(plan.items.len(), plan.work * call.head_dim, &|index| {
        // SAFETY: each item writes rows, or partial results, that no other item writes.
        SCRATCH.with_borrow_mut(|scratch| unsafe { kernel::run_item(call, &plan.items[index], scratch) });
    });
    let panels: Vec<_> =
        plan.merges.iter().flat_map(|merge| merge.panels.clone().map(move |panel| (merge, panel))).collect();
    for_each(panels.len(), plan.partial_length, &|index| {
        let (merge, panel) = panels[index];
        // SAFETY: all partial results are written, and each panel has its own output rows.
        unsafe { merge::merge_panel(call, merge, panel) };
    });
}

/// Spreads tasks over the pool unless there is little to do.
fn for_each(tasks: usize, work: usize, task: &(dyn Fn(usize) + Sync)) {
    if work < SMALL { (0..tasks).for_each(task) } else { pool::for_each(tasks, task) }
}

/// Locks the keys and values of the chunks that are in use.
fn read_chunks<'a>(segment: &Segment<'a>) -> Result<Vec<[HostSlice<'a, f32>; 2]>> {
    let length = segment.chunks[0].keys.dims()[0];
    let used = &segment.chunks[..(segment.end - segment.start).div_ceil(length)];
    let read = |name, tensor| HostSlice::read(tensor, "attention", name);
    used.iter().map(|chunk| Ok([read("keys", &chunk.keys)?, read("values", &chunk.values)?])).collect()
}

fn cached<'a>(
    heads: usize,
    segment: &Segment<'_>,
    chunks: &'a [[HostSlice<'_, f32>; 2]],
    params: AttentionParams,
) -> Cached<'a> {
    let dims = segment.chunks[0].keys.dims();
    let (length, groups) = (dims[0], dims[1]);
    let extent = Extent {
        count: segment.rows.len(),
        start: segment.start,
        end: segment.end,
        groups,
        share: heads / groups,
        window: params.window,
    };
    let chunks = chunks.iter().map(|[keys, values]| [&**keys, &**values]).collect();
    Cached { extent, first_row: segment.rows.start, length, chunks }
}
