//! The CPU implementation: one pass over the vocabulary, in the manner of [attention].
//!
//! With `e = exp(logit − m)` for a running maximum `m`, the gradient of a row's hidden state is a sum over the
//! vocabulary of `e · w`, divided by `Σ e` in the end. So a tile of logits is made, turned into `e` and multiplied
//! with the same rows of the weight while both are in a cache: two products, no logits in memory, and nothing is
//! computed twice.
//!
//! The vocabulary is cut into segments, each with sums of its own: tasks for the threads, merged at the end. Where
//! the cuts are depends on the shape alone, and so does the result.
//!
//! [attention]: https://arxiv.org/abs/2205.14135

mod head_gradient;
#[cfg(target_arch = "x86_64")]
mod matrices;
mod merge;
mod segment;
mod tile;

use std::{borrow::Cow, ops::Range};

use candle_core::{Device, Error, Result, Tensor};

use super::{Counted, HeadWeight, Loss, LossGradients, LossParams};
use crate::{
    linear::{
        Projection,
        microkernel::{tile_columns, tile_rows},
    },
    memory,
    parts::Parts,
    pool::{self, Disjoint},
    scratch::with_scratch,
    simd::{Simd, dispatch},
    view::{Floats, View},
};

/// The most tokens that share a reading of the weights: their sums of all segments stay within [`SUMS`].
const CHUNK_TOKENS: usize = 512;
/// Numbers of hidden states in a chunk.
const CHUNK_NUMBERS: usize = 1 << 20;
/// Floats of all segments' sums.
const SUMS: usize = 16 << 20;
/// Fewest and most segments.
const SEGMENTS: std::ops::RangeInclusive<usize> = 8..=64;
/// Logits per tile and token.
const COLUMNS: usize = 128;

/// One call on slices.
struct Job<'a> {
    /// `[C, D]`: the tokens that count.
    hidden: Cow<'a, [f32]>,
    /// `[C]`
    targets: &'a [u32],
    /// C
    tokens: usize,
    /// D
    width: usize,
    /// `[V, D]`
    weight: Floats<'a>,
    /// `[V]`
    bias: Option<Cow<'a, [f32]>>,
    /// V
    vocabulary: usize,
    params: LossParams,
}

/// Tokens that share a reading of the weights, as the left operand of products.
struct Chunk<'a> {
    /// The first of the job's counted tokens.
    first: usize,
    tokens: usize,
    /// Of tokens, none larger than a tile.
    blocks: usize,
    /// `[D, tokens of the block]` for each block, or what AMX multiplies.
    packed: &'a [f32],
    /// Whether AMX multiplies.
    in_matrices: bool,
}

impl Chunk<'_> {
    /// A chunk that is to be packed.
    fn new(first: usize, tokens: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        if matrices::are_used(tokens) {
            let blocks = matrices::blocks(tokens);
            return Self { first, tokens, blocks, packed: &[], in_matrices: true };
        }
        let blocks = Parts::at_most(block_tokens(), tokens).count;
        Self { first, tokens, blocks, packed: &[], in_matrices: false }
    }

    /// Its blocks, unless AMX multiplies, which takes whole tiles first.
    fn even_blocks(&self) -> Parts {
        Parts { whole: self.tokens, count: self.blocks }
    }

    /// Floats of the packed tokens.
    fn packed_length(&self, width: usize) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self.in_matrices {
            return self.blocks * matrices::block_length(width);
        }
        self.tokens * width
    }
}

/// Where the columns of a segment end.
#[derive(Clone, Copy)]
struct Segments {
    vocabulary: usize,
    count: usize,
}

impl Segments {
    fn new(job: &Job<'_>, tokens: usize) -> Self {
        let sums = tokens * padded(job.width);
        let wanted = (SUMS / sums.max(1)).clamp(*SEGMENTS.start(), *SEGMENTS.end());
        Self { vocabulary: job.vocabulary, count: wanted.min(job.vocabulary.div_ceil(COLUMNS)) }
    }

    /// The first column of a segment, a multiple of [`COLUMNS`]; V for the segment after the last.
    fn start(self, segment: usize) -> usize {
        let tiles = Parts { whole: self.vocabulary.div_ceil(COLUMNS), count: self.count };
        (tiles.start(segment) * COLUMNS).min(self.vocabulary)
    }
}

/// D, rounded up to whole tiles of the microkernel at every instruction set.
fn padded(width: usize) -> usize {
    width.next_multiple_of(32)
}

pub(super) fn run(
    hidden: &Tensor,
    head: &Projection,
    counted: &Counted,
    params: &LossParams,
    wanted: Option<HeadWeight>,
) -> Result<(Loss, Option<LossGradients>)> {
    let (tokens, width) = hidden.dims2()?;
    let [hidden, weight] = [hidden, &head.weight].map(View::new);
    let hidden = hidden.f32s("cross_entropy: `hidden`")?;
    let bias = head.bias.as_ref().map(View::new);
    let bias = match &bias {
        Some(bias) => Some(match bias.floats("cross_entropy: the head's bias")? {
            Floats::F32(bias) => Cow::Borrowed(bias),
            bias => Cow::Owned(bias.to_f32s()),
        }),
        None => None,
    };
    let job = Job {
        hidden: gather(hidden, width, &counted.rows),
        targets: &counted.targets,
        tokens: counted.rows.len(),
        width,
        weight: weight.floats("cross_entropy: the head's weight")?,
        bias,
        vocabulary: head.weight.dim(0)?,
        params: *params,
    };
    let mut losses = vec![0f32; tokens];
    let mut d_hidden = wanted.map(|_| vec![0f32; tokens * width]);
    let mut log_sums = vec![0f32; job.tokens];
    for_each_chunk(&job, |chunk| {
        let rows = &counted.rows[chunk.first..chunk.first + chunk.tokens];
        let log_sums = &mut log_sums[chunk.first..chunk.first + chunk.tokens];
        chunk_loss(&job, chunk, rows, &mut losses, log_sums, d_hidden.as_deref_mut())
    })?;
    let loss = Loss { losses: Tensor::from_vec(losses, tokens, &Device::Cpu)?, count: job.tokens };
    let Some(d_hidden) = d_hidden else { return Ok((loss, None)) };
    let weight = match wanted {
        Some(HeadWeight::Trainable) => {
            let gradient = head_gradient::head_gradient(&job, &log_sums)?;
            Some(Tensor::from_vec(gradient, (job.vocabulary, width), &Device::Cpu)?)
        }
        _ => None,
    };
    let hidden = Tensor::from_vec(d_hidden, (tokens, width), &Device::Cpu)?;
    Ok((loss, Some(LossGradients { hidden, weight })))
}

/// The rows that count.
fn gather<'a>(hidden: &'a [f32], width: usize, rows: &[u32]) -> Cow<'a, [f32]> {
    if rows.len() * width == hidden.len() {
        return Cow::Borrowed(hidden);
    }
    let rows = rows.iter().map(|&row| &hidden[row as usize * width..][..width]);
    Cow::Owned(rows.flatten().copied().collect())
}

fn for_each_chunk(job: &Job<'_>, mut body: impl FnMut(&Chunk<'_>) -> Result<()>) -> Result<()> {
    if job.tokens == 0 {
        return Ok(());
    }
    let most = (CHUNK_NUMBERS / job.width.max(1)).clamp(32, CHUNK_TOKENS);
    for Range { start: first, end } in Parts::at_most(most, job.tokens).ranges() {
        let chunk = Chunk::new(first, end - first);
        with_scratch(chunk.packed_length(job.width), |packed| {
            pack_chunk(job, &chunk, packed);
            body(&Chunk { packed, ..chunk })
        })?;
    }
    Ok(())
}

fn pack_chunk(job: &Job<'_>, chunk: &Chunk<'_>, packed: &mut [f32]) {
    let (hidden, width) = (&job.hidden[chunk.first * job.width..], job.width);
    let packed = Disjoint::new(packed);
    pool::for_each(chunk.blocks, &|block| {
        #[cfg(target_arch = "x86_64")]
        if chunk.in_matrices {
            let length = matrices::block_length(width);
            // SAFETY: the blocks do not overlap.
            let to = unsafe { packed.part(block * length, length) };
            return matrices::pack_block(hidden, width, matrices::rows(block, chunk.tokens), to);
        }
        let Range { start, end } = chunk.even_blocks().range(block);
        // SAFETY: the blocks do not overlap.
        let to = unsafe { packed.part(start * width, (end - start) * width) };
        tile::pack_block(&hidden[start * width..end * width], width, end - start, to);
    });
}

/// Losses, their logarithms of sums, and gradients of one chunk. `rows` are its tokens' places in the results.
fn chunk_loss(
    job: &Job<'_>,
    chunk: &Chunk<'_>,
    rows: &[u32],
    losses: &mut [f32],
    log_sums: &mut [f32],
    d_hidden: Option<&mut [f32]>,
) -> Result<()> {
    let segments = Segments::new(job, chunk.tokens);
    let has_gradient = d_hidden.is_some();
    let shape = segment::SumShape::new(job, chunk.tokens, has_gradient);
    // Zeros that are not in memory until they are written.
    let mut sums = memory::huge_vec::<f32>(segments.count * shape.total()).map_err(Error::wrap)?;
    let mut statistics = vec![segment::Statistics::EMPTY; segments.count * chunk.tokens];
    let (all_sums, all_statistics) = (Disjoint::new(&mut sums), Disjoint::new(&mut statistics));
    pool::for_each(segments.count, &|index| {
        let columns = segments.start(index)..segments.start(index + 1);
        // SAFETY: each segment has parts of its own.
        let (sums, statistics) = unsafe {
            let statistics = all_statistics.part(index * chunk.tokens, chunk.tokens);
            (all_sums.part(index * shape.total(), shape.total()), statistics)
        };
        segment::add_segment(job, chunk, columns, shape, statistics, sums);
    });
    let parts = merge::Parts { chunk, segments, statistics: &statistics, shape, sums: &sums };
    merge::merge(job, &parts, rows, losses, log_sums, d_hidden);
    Ok(())
}

dispatch! {
    /// The most tokens of a block.
    fn block_tokens() -> usize = block_tokens_with;
}

#[inline(always)]
fn block_tokens_with<S: Simd>(_: S) -> usize {
    // What the sums' layout and the packing of blocks rely on.
    const { assert!(COLUMNS.is_multiple_of(tile_columns::<S>()) && 32 % tile_columns::<S>() == 0) };
    const { assert!(tile_rows::<S>() <= S::LANES) };
    tile_rows::<S>()
}
