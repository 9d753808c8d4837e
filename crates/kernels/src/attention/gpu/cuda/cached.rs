//! New rows against the chunks of their sequences' caches.

use candle_core::{CudaDevice, DType, Result, Tensor, bail};

use super::{Common, ForwardArguments, Rows, Shape, slots, word};
use crate::{
    attention::{
        AttentionParams, Segment,
        gpu::{
            call::{Table, Tiles, aligned, check_chunk},
            tiles::{Sight, tiles},
        },
    },
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
    let (chunk_length, groups, _) = segments[0].chunks[0].keys.dims3()?;
    let call = Call { device, shape: Shape::of(queries, groups)?, segments, params, chunk_length };
    let chunks = call.chunks()?;
    let queries = aligned(queries)?;
    let mut table = Table::new([]);
    let lists = call.lists(&mut table);
    let launches = call.launches(&mut table)?;
    let splits = call.splits(launches.iter().map(|launch| launch.tiles.count).sum())?;
    let memory = Memory::new(&queries, splits)?;

    let mut arguments = vec![Argument::Read(&queries), Argument::Write(&memory.out)];
    arguments.extend([Argument::Write(&memory.partial), Argument::Write(&memory.partial_lse)]);
    arguments.extend(chunks.into_iter().map(Argument::Read));
    with_addresses(device, "attention", &arguments, |addresses| {
        let (&[queries_at, out, partial, partial_lse], chunks) =
            addresses.split_first_chunk().expect("four arguments are always there");
        // Addresses come first: so they lie at multiples of 8 bytes.
        let mut words =
            Table::new(chunks.iter().flat_map(|address| [*address as u32, (*address >> 32) as u32]));
        let lists_at = words.append(table.0);
        let table = words.upload(queries.device())?;
        with_addresses(device, "attention", &[Argument::Read(&table)], |addresses| {
            let (chunks_at, lists_at) = (addresses[0], word(addresses[0], lists_at));
            let arguments = ForwardArguments {
                common: Common { starts: word(lists_at, lists.starts), ..call.shape.common(params, true)? },
                queries: Rows { data: queries_at, stride: queries.stride()[0] as i64 },
                key_chunks: chunks_at,
                value_chunks: word(chunks_at, chunks.len()), // the second half of the addresses, two words each
                chunk_starts: word(lists_at, lists.chunk_starts),
                lengths: word(lists_at, lists.lengths),
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
            unsafe { call.run(&launches, lists_at, splits, arguments) }
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

/// At which words of the table they start.
struct Lists {
    starts: usize,
    lengths: usize,
    chunk_starts: usize,
}

/// One kernel over the segments that suit it.
struct Launch {
    kernel: StructKernel,
    tiles: Tiles,
}

#[derive(Clone, Copy)]
struct Call<'a> {
    device: &'a CudaDevice,
    shape: Shape,
    segments: &'a [Segment<'a>],
    params: AttentionParams,
    chunk_length: usize,
}

impl<'a> Call<'a> {
    /// All keys that are seen, then all values, segment by segment.
    fn chunks(self) -> Result<Vec<&'a Tensor>> {
        if !self.chunk_length.is_power_of_two() {
            bail!("attention: chunks have {} positions, expected a power of two on a GPU", self.chunk_length);
        }
        let used = |segment: &'a Segment<'a>| &segment.chunks[..self.chunks_of(segment)];
        let chunks = || self.segments.iter().flat_map(used);
        let keys = chunks().map(|chunk| &chunk.keys);
        let tensors: Vec<&Tensor> = keys.chain(chunks().map(|chunk| &chunk.values)).collect();
        tensors.iter().try_for_each(|tensor| check_chunk(tensor, self.chunk_length, self.shape.float))?;
        Ok(tensors)
    }

    /// How many chunks are filled.
    fn chunks_of(self, segment: &Segment<'_>) -> usize {
        (segment.end - segment.start).div_ceil(self.chunk_length)
    }

    fn lists(self, table: &mut Table) -> Lists {
        let ends = self.segments.iter().map(|segment| segment.rows.end as u32);
        let mut next_chunk = 0;
        let chunk_starts = self.segments.iter().map(|segment| {
            let start = next_chunk;
            next_chunk += self.chunks_of(segment) as u32;
            start
        });
        Lists {
            starts: table.append(std::iter::once(0).chain(ends)),
            lengths: table.append(self.segments.iter().map(|segment| (segment.end - segment.start) as u32)),
            chunk_starts: table.append(chunk_starts),
        }
    }

    /// Segments with few rows, which decode, go to the kernel whose warps share out the keys; others to the one whose warps
    /// share out the rows.
    fn launches(self, table: &mut Table) -> Result<Vec<Launch>> {
        let decode = self.shape.kernel(self.device, "attention_decode")?;
        let cached = self.shape.kernel(self.device, "attention_cached")?;
        // Query heads that share a key/value head are rows of one block: row = token · share + head.
        let (share, few) = (self.shape.share(), decode.rows as usize);
        let sight = Sight { causal: true, window: self.params.window };
        let work = |segment: usize, first: usize, last: usize| {
            let segment = &self.segments[segment];
            let length = segment.end - segment.start;
            let position = |row: usize| length - segment.rows.len() + row / share;
            sight.keys(position(first), position(last), length)
        };
        let mut launches = Vec::new();
        for (kernel, range) in [(decode, 1..=few), (cached, few + 1..=usize::MAX)] {
            let rows = self.segments.iter().map(|segment| segment.rows.len() * share);
            let counts: Vec<usize> = rows.map(|rows| if range.contains(&rows) { rows } else { 0 }).collect();
            let tiles = Tiles::append(&tiles(&counts, kernel.rows as usize, work), table);
            launches.push(Launch { kernel, tiles });
        }
        Ok(launches)
    }

    /// Parts of the keys, so that few tiles fill the GPU nevertheless.
    fn splits(self, tiles: usize) -> Result<usize> {
        let window = self.params.window.unwrap_or(usize::MAX);
        let keys = |segment: &Segment<'_>| {
            (segment.end - segment.start).min(window.saturating_add(segment.rows.len()))
        };
        let longest = self.segments.iter().map(keys).max().unwrap_or(0);
        let numbers = self.shape.rows * self.shape.heads * self.shape.head_dim;
        let most = MOST_SPLITS.min(longest / KEYS_PER_SPLIT).min(MOST_PARTIAL / numbers);
        let blocks = tiles * self.shape.groups;
        Ok((slots(self.device)? / blocks).min(most).max(1))
    }

    /// # Safety
    /// As [`StructKernel::launch`], with the lists of tiles in the table at `lists_at`.
    unsafe fn run(
        self,
        launches: &[Launch],
        lists_at: u64,
        splits: usize,
        arguments: ForwardArguments,
    ) -> Result<()> {
        for Launch { kernel, tiles } in launches {
            let common = Common { tiles: word(lists_at, tiles.start), ..arguments.common };
            let arguments = ForwardArguments { common, ..arguments };
            // SAFETY: the caller's promise.
            unsafe { kernel.launch(self.device, [self.shape.groups, tiles.count, splits], arguments)? };
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
