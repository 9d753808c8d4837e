//! New rows against the chunks of their sequences' caches.

use std::ops::Range;

use candle_core::{DType, Result, Tensor};

use super::{BLOCK_ROWS, BLOCK_THREADS, MODULE, Sized, sized};
use crate::{
    attention::{
        AttentionParams, KvChunk, Segment,
        gpu::call::{Shape, Table, aligned, check_chunk, like},
    },
    fresh::Fresh,
    gpu::{Argument, Kernel, launch},
};

static CACHED: Sized = sized!("attention_cached");
static MERGE: Kernel = Kernel::new(&MODULE, "attention_merge");

/// As in cached.metal: chunks per launch.
const SLOTS: usize = 12;
/// With fewer blocks than this, each chunk is a block's work of its own.
const FEW_BLOCKS: usize = 64;

pub(in crate::attention::gpu) fn attention(
    queries: &Tensor,
    segments: &[Segment<'_>],
    params: AttentionParams,
) -> Result<Fresh> {
    let (chunk_length, groups, _) = segments[0].chunks[0].keys.dims3()?;
    let (shape, device) = (Shape::of(queries, groups)?, queries.device());
    let plan = Plan::new(shape, segments, params, chunk_length);
    let mut table = Table::new(header(shape, params, chunk_length));
    table.append(plan.parts_of_rows(segments));
    let starts: Vec<usize> = plan.launches.iter().map(|launch| table.append(launch.items.concat())).collect();
    let (table, queries) = (table.upload(device)?, aligned(&queries.contiguous()?)?);

    let Shape { rows, heads, head_dim, .. } = shape;
    let parts = plan.parts.iter().copied().max().unwrap_or(0);
    // SAFETY: the launches write as many parts of each row as `merge` then reads.
    let floats = |count: usize| unsafe { Fresh::uninitialized(count, DType::F32, device) };
    let partial = floats(parts * rows * heads * head_dim)?.into_tensor();
    let partial_lse = floats(parts * rows * heads)?.into_tensor();
    for (Slots { chunks, items }, start) in plan.launches.iter().zip(starts) {
        for tensor in chunks.iter().flat_map(|chunk| [&chunk.keys, &chunk.values]) {
            check_chunk(tensor, chunk_length, shape.float)?;
        }
        // What no item names may be any chunk.
        let slots = || (0..SLOTS).map(|slot| chunks[slot.min(chunks.len() - 1)]);
        let mut arguments = vec![
            Argument::Read(&queries),
            Argument::Read(&table),
            Argument::Update(&partial),
            Argument::Update(&partial_lse),
            Argument::U32(start as u32),
        ];
        arguments.extend(slots().map(|chunk| Argument::Read(&chunk.keys)));
        arguments.extend(slots().map(|chunk| Argument::Read(&chunk.values)));
        let kernel = shape.kernel_of(&CACHED);
        // SAFETY: as cached.metal asks. The segments were checked to cover the rows and their chunks the keys.
        unsafe { launch(device, &shape.launch(kernel, [groups, items.len(), 1], &arguments))? };
    }

    // SAFETY: `merge` writes every element.
    let out = unsafe { like(&queries)? };
    let arguments = [
        Argument::Read(&partial),
        Argument::Read(&partial_lse),
        Argument::Read(&table),
        Argument::Write(&out),
    ];
    let blocks = [(rows * heads * head_dim).div_ceil(BLOCK_THREADS), 1, 1];
    // SAFETY: as `attention_merge` in cached.metal asks.
    unsafe { launch(device, &shape.launch(&MERGE, blocks, &arguments))? };
    Ok(out)
}

/// `call_of_table` in common.metal.
fn header(shape: Shape, params: AttentionParams, chunk_length: usize) -> [u32; 8] {
    let Shape { rows, heads, groups, head_dim, .. } = shape;
    let [rows, heads, groups, head_dim, length] =
        [rows, heads, groups, head_dim, chunk_length].map(|number| number as u32);
    let [scale, cap] = [params.scale, params.cap_or_zero()].map(f32::to_bits);
    [rows, heads, groups, head_dim, params.window_or_zero(), scale, cap, length]
}

/// What is launched for a call.
struct Plan<'a> {
    launches: Vec<Slots<'a>>,
    /// Parts of the rows of each segment.
    parts: Vec<usize>,
}

/// One launch.
struct Slots<'a> {
    chunks: Vec<&'a KvChunk>,
    /// `Item` in cached.metal.
    items: Vec<[u32; 8]>,
}

impl<'a> Plan<'a> {
    fn new(shape: Shape, segments: &'a [Segment<'a>], params: AttentionParams, chunk_length: usize) -> Self {
        let blocks = |segment: &Segment<'_>| (segment.rows.len() * shape.share()).div_ceil(BLOCK_ROWS);
        let is_split = segments.iter().map(blocks).sum::<usize>() * shape.groups < FEW_BLOCKS;
        let mut plan = Self { launches: Vec::new(), parts: vec![0; segments.len()] };
        for (index, segment) in segments.iter().enumerate() {
            let mut left = seen_chunks(segment, params, chunk_length);
            while !left.is_empty() {
                let part = plan.parts[index];
                let launch = plan.launch_with_room();
                let room = if is_split { 1 } else { SLOTS - launch.chunks.len() };
                let run = left.start..left.end.min(left.start + room);
                left.start = run.end;
                launch.add(segment, run, blocks(segment), chunk_length, part);
                plan.parts[index] += 1;
            }
        }
        plan
    }

    fn launch_with_room(&mut self) -> &mut Slots<'a> {
        if self.launches.last().is_none_or(|launch| launch.chunks.len() == SLOTS) {
            self.launches.push(Slots { chunks: Vec::new(), items: Vec::new() });
        }
        self.launches.last_mut().expect("there is one with room")
    }

    fn parts_of_rows(&self, segments: &[Segment<'_>]) -> Vec<u32> {
        let rows = segments.iter().zip(&self.parts);
        rows.flat_map(|(segment, &parts)| segment.rows.clone().map(move |_| parts as u32)).collect()
    }
}

impl<'a> Slots<'a> {
    /// Adds a run of a segment's chunks, for all blocks of its rows.
    fn add(
        &mut self,
        segment: &Segment<'a>,
        run: Range<usize>,
        blocks: usize,
        chunk_length: usize,
        part: usize,
    ) {
        let slot = self.chunks.len();
        self.chunks.extend(&segment.chunks[run.clone()]);
        for block in 0..blocks {
            let item = [
                segment.rows.start,
                segment.rows.len(),
                block,
                segment.end - segment.start,
                slot,
                self.chunks.len(),
                run.start * chunk_length,
                part,
            ];
            self.items.push(item.map(|number| number as u32));
        }
    }
}

/// The chunks of which a row of the segment may see something.
fn seen_chunks(segment: &Segment<'_>, params: AttentionParams, chunk_length: usize) -> Range<usize> {
    let length = segment.end - segment.start;
    let first_position = length - segment.rows.len();
    let first = params.window.map_or(0, |window| (first_position + 1).saturating_sub(window));
    first / chunk_length..length.div_ceil(chunk_length)
}
