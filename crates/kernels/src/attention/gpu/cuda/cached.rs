//! New rows against the chunks of their sequences' caches.

use candle_core::{CudaDevice, DType, Result, Tensor, bail};

use super::{Common, ForwardArguments, Rows, Shape, Table, aligned, sight, slots};
use crate::{
    attention::{AttentionParams, Segment, gpu::tiles::tiles},
    fresh::Fresh,
    gpu::{
        Argument,
        cuda::{StructKernel, with_addresses},
    },
};

/// Keys that make a part of their own worth while.
const KEYS_PER_SPLIT: usize = 256;
/// Parts of the keys of one row.
const MOST_SPLITS: usize = 32;
/// Numbers that all parts may hold together: 64 MB.
const MOST_PARTIAL: usize = 16 << 20;

pub(in crate::attention::gpu) fn attention(
    device: &CudaDevice,
    queries: &Tensor,
    segments: &[Segment<'_>],
    params: AttentionParams,
) -> Result<Fresh> {
    let first = &segments[0].chunks[0].keys;
    let call = Call { device, shape: Shape::of(queries, first.dims()[1])?, segments, params };
    let chunk_length = first.dims()[0];
    if !chunk_length.is_power_of_two() {
        bail!("attention: chunks have {chunk_length} positions, expected a power of two on a GPU");
    }
    let queries = aligned(queries)?;
    let mut table = Table::new();
    let starts =
        table.append(std::iter::once(0).chain(segments.iter().map(|segment| segment.rows.end as u32)));
    let lengths = table.append(segments.iter().map(|segment| (segment.end - segment.start) as u32));
    let used = segments.iter().map(|segment| (segment.end - segment.start).div_ceil(chunk_length));
    let chunk_starts = table.append(used.clone().scan(0, |next, count| {
        let start = *next;
        *next += count as u32;
        Some(start)
    }));
    let launches = call.launches(&mut table)?;
    let blocks = launches.iter().map(|launch| launch.blocks).sum();
    let splits = call.splits(blocks)?;

    let memory = Memory::new(&queries, splits)?;
    let mut arguments = vec![Argument::Read(&queries), Argument::Write(&memory.out)];
    arguments.extend([Argument::Write(&memory.partial), Argument::Write(&memory.partial_lse)]);
    let chunks = || segments.iter().zip(used.clone()).flat_map(|(segment, used)| &segment.chunks[..used]);
    arguments.extend(chunks().map(|chunk| Argument::Read(&chunk.keys)));
    arguments.extend(chunks().map(|chunk| Argument::Read(&chunk.values)));
    call.check(&arguments[4..])?;
    with_addresses(device, "attention", &arguments, |addresses| {
        let (&[queries_at, out, partial, partial_lse], chunks) =
            addresses.split_first_chunk().expect("four arguments are always there");
        // Addresses come first in the table: they are aligned to 8 bytes.
        let words = chunks.iter().flat_map(|address| [*address as u32, (*address >> 32) as u32]);
        let table_start = 8 * chunks.len() as u64;
        let table = Table { words: words.chain(table.words.iter().copied()).collect() }.upload(device)?;
        with_addresses(device, "attention", &[Argument::Read(&table)], |addresses| {
            let (chunks_at, table) = (addresses[0], addresses[0] + table_start);
            let arguments = ForwardArguments {
                common: Common { starts: table + starts, ..call.shape.common(params, true)? },
                queries: Rows { data: queries_at, stride: queries.stride()[0] as i64 },
                key_chunks: chunks_at,
                value_chunks: chunks_at + 4 * chunks.len() as u64,
                chunk_starts: table + chunk_starts,
                lengths: table + lengths,
                chunk_shift: chunk_length.trailing_zeros(),
                pack: call.shape.share() as u32,
                splits: splits as u32,
                out: Rows { data: out, stride: (call.shape.heads * call.shape.head_dim) as i64 },
                partial,
                partial_lse,
                ..ForwardArguments::default()
            };
            // SAFETY: the struct is arguments.cuh's. The segments were checked to cover the rows, and their chunks the keys;
            // the tiles of the launches cover the segments; `merge` runs after all parts were written.
            unsafe { call.run(&launches, table, splits, arguments) }
        })
    })?;
    Ok(memory.out)
}

/// What the call writes.
struct Memory {
    out: Fresh,
    /// `[splits, T, H, D]` and `[splits, H, T]`; not used without splits.
    partial: Fresh,
    partial_lse: Fresh,
}

impl Memory {
    fn new(queries: &Tensor, splits: usize) -> Result<Self> {
        let (rows, heads, head_dim) = queries.dims3()?;
        let parts = |count: usize| {
            let count = if splits > 1 { splits * count } else { 1 };
            // SAFETY: every part is written before `merge` reads them.
            unsafe { Fresh::uninitialized(count, DType::F32, queries.device()) }
        };
        // SAFETY: the kernels write every row of every head.
        let out = unsafe { Fresh::uninitialized(queries.shape(), queries.dtype(), queries.device())? };
        Ok(Self { out, partial: parts(rows * heads * head_dim)?, partial_lse: parts(rows * heads)? })
    }
}

/// One kernel over the segments that suit it.
struct Launch {
    kernel: StructKernel,
    /// Where its tiles start in the table, in bytes.
    tiles: u64,
    tile_count: usize,
    /// Without splits.
    blocks: usize,
}

#[derive(Clone, Copy)]
struct Call<'a> {
    device: &'a CudaDevice,
    shape: Shape,
    segments: &'a [Segment<'a>],
    params: AttentionParams,
}

impl Call<'_> {
    /// The few rows of segments that decode go to the kernel whose warps share out the keys, others to the one whose warps
    /// share out the rows.
    fn launches(self, table: &mut Table) -> Result<Vec<Launch>> {
        let decode = self.shape.kernel(self.device, "attention_decode")?;
        let cached = self.shape.kernel(self.device, "attention_cached")?;
        let (few, sight) = (decode.rows as usize, sight(self.params, true));
        // Query heads that share a key/value head are rows of one block: row = token · share + head.
        let share = self.shape.share();
        let mut launches = Vec::new();
        for (kernel, range) in [(decode, 1..=few), (cached, few + 1..=usize::MAX)] {
            let rows = |segment: &Segment<'_>| segment.rows.len() * share;
            let counts: Vec<usize> = self
                .segments
                .iter()
                .map(rows)
                .map(|rows| if range.contains(&rows) { rows } else { 0 })
                .collect();
            let work = |segment: usize, first: usize, last: usize| {
                let segment = &self.segments[segment];
                let length = segment.end - segment.start;
                let position = |row: usize| length - segment.rows.len() + row / share;
                sight.keys(position(first), position(last), length)
            };
            let tiles = tiles(&counts, kernel.rows as usize, work);
            if !tiles.is_empty() {
                let (tile_count, blocks) = (tiles.len(), tiles.len() * self.shape.groups);
                let tiles = table.append(tiles.into_iter().flatten());
                launches.push(Launch { kernel, tiles, tile_count, blocks });
            }
        }
        Ok(launches)
    }

    /// Parts of the keys, so that few blocks fill the GPU nevertheless.
    fn splits(self, blocks: usize) -> Result<usize> {
        let window = self.params.window.unwrap_or(usize::MAX);
        let keys = |segment: &Segment<'_>| {
            (segment.end - segment.start).min(window.saturating_add(segment.rows.len()))
        };
        let longest = self.segments.iter().map(keys).max().unwrap_or(0);
        let numbers = self.shape.rows * self.shape.heads * self.shape.head_dim;
        let most = MOST_SPLITS.min(longest / KEYS_PER_SPLIT).min(MOST_PARTIAL / numbers.max(1));
        Ok((slots(self.device)? / blocks.max(1)).min(most).max(1))
    }

    /// All keys and values have the queries' type and lie in one piece.
    fn check(self, chunks: &[Argument<'_>]) -> Result<()> {
        for argument in chunks {
            let Argument::Read(tensor) = argument else { unreachable!("chunks are read") };
            let expected = self.shape.float.dtype();
            if tensor.dtype() != expected {
                bail!(
                    "attention: a chunk has dtype {:?}, expected {expected:?} like `queries`",
                    tensor.dtype()
                );
            }
            let size = tensor.dtype().size_in_bytes();
            if !tensor.is_contiguous() || !(tensor.layout().start_offset() * size).is_multiple_of(16) {
                bail!("attention: a chunk is not contiguous from a multiple of 16 bytes; copy it");
            }
        }
        Ok(())
    }

    /// # Safety
    /// As [`StructKernel::launch`], with the tiles of each launch at `table`.
    unsafe fn run(
        self,
        launches: &[Launch],
        table: u64,
        splits: usize,
        arguments: ForwardArguments,
    ) -> Result<()> {
        for launch in launches {
            let common = Common { tiles: table + launch.tiles, ..arguments.common };
            let arguments = ForwardArguments { common, ..arguments };
            // SAFETY: the caller's promise.
            unsafe {
                launch.kernel.launch(
                    self.device,
                    [self.shape.groups, launch.tile_count, splits],
                    arguments,
                )?
            };
        }
        if splits == 1 {
            return Ok(());
        }
        let merge = self.shape.elementwise(self.device, "attention_merge")?;
        let grid = self.shape.row_grid(&merge, self.shape.head_dim / 2);
        // SAFETY: the caller's promise.
        unsafe { merge.launch(self.device, grid, arguments) }
    }
}
