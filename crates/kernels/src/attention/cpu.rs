//! The CPU implementation: online softmax over blocks of keys, read where they lie in their chunks.

mod backward;
mod call;
mod kernel;
mod merge;
mod packed;
mod plan;
mod product;
mod work;

use candle_core::{Device, Result, Tensor};

use super::{AttentionParams, KvChunk, Segment};
use crate::{
    output::{Output, filled},
    pool,
    scratch::with_scratch,
    view::{StridedRows, View},
};
pub(super) use packed::{backward, forward};

use call::{Cached, Call};
use plan::{Extent, Plan};
use work::Work;

/// Numbers (of keys, or of partial results) that one thread reads alone rather than waking others.
const SMALL: usize = 16 * 1024;

pub(super) fn attention(
    queries: &Tensor,
    segments: &[Segment<'_>],
    params: AttentionParams,
) -> Result<Tensor> {
    let (rows, heads, head_dim) = queries.dims3()?;
    let elements = View::new(queries);
    let elements = elements.f32s("attention: `queries`")?;
    let elements = StridedRows { numbers: elements, stride: heads * head_dim };
    let views: Vec<_> = segments.iter().map(view_chunks).collect();
    let cached = segments.iter().zip(&views).map(|(segment, views)| cached(heads, segment, views, params));
    let segments = cached.collect::<Result<Vec<_>>>()?;
    let output = mixed(elements, [rows, heads, head_dim], segments, params, None);
    Tensor::from_vec(output, queries.shape(), &Device::Cpu)
}

/// The output, `[rows, H, D]`; writes all of `lse`, if there is one.
fn mixed(
    queries: StridedRows<'_>,
    [rows, heads, head_dim]: [usize; 3],
    segments: Vec<Cached<'_>>,
    params: AttentionParams,
    lse: Option<Output<f32>>,
) -> Vec<f32> {
    let plan = Plan::new(segments.iter().map(|segment| &segment.extent), head_dim);
    with_scratch(plan.partial_length, |partials| {
        let partials = Output::new(partials.as_mut_ptr());
        let fill = |output| {
            let call = Call { queries, rows, heads, head_dim, params, segments, output, lse, partials };
            run(&call, &plan);
        };
        // SAFETY: the plan's items and merges together write every row of every head.
        unsafe { filled(rows * heads * head_dim, fill) }
    })
}

fn run(call: &Call<'_>, plan: &Plan) {
    for_each(plan.items.len(), plan.work * call.head_dim, &|index| {
        with_scratch(Work::scratch_length(call.head_dim), |scratch| {
            // SAFETY: each item writes rows, or partial results, that no other item writes.
            unsafe { kernel::run_item(call, &plan.items[index], scratch) };
        });
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

/// The keys and values of the chunks that are in use.
fn view_chunks<'a>(segment: &Segment<'a>) -> Vec<[View<'a>; 2]> {
    let length = segment.chunks[0].keys.dims()[0];
    let used = (segment.end - segment.start).div_ceil(length);
    let view = |chunk: &&'a KvChunk| [&chunk.keys, &chunk.values].map(View::new);
    segment.chunks[..used].iter().map(view).collect()
}

fn cached<'a>(
    heads: usize,
    segment: &Segment<'_>,
    views: &'a [[View<'_>; 2]],
    params: AttentionParams,
) -> Result<Cached<'a>> {
    let (length, groups, head_dim) = segment.chunks[0].keys.dims3()?;
    let extent = Extent {
        count: segment.rows.len(),
        start: segment.start,
        end: segment.end,
        groups,
        share: heads / groups,
        window: params.window,
        causal: true,
    };
    let read = |[keys, values]: &'a [View<'_>; 2]| {
        Ok([keys.f32s("attention: `keys`")?, values.f32s("attention: `values`")?])
    };
    let chunks = views.iter().map(read).collect::<Result<_>>()?;
    Ok(Cached { extent, first_row: segment.rows.start, length, stride: groups * head_dim, chunks })
}
