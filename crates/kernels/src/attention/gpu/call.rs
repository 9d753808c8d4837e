//! What the calls for both families of GPUs are made of.

use candle_core::{Device, Result, Tensor, bail};

use super::tiles::{Sight, tiles};
use crate::{
    attention::{AttentionParams, PackedAttention},
    fresh::Fresh,
    gpu::Float,
    view::has_dense_rows,
};

/// T rows, H query heads, G key/value heads of D elements.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) float: Float,
    pub(super) rows: usize,
    pub(super) heads: usize,
    pub(super) groups: usize,
    pub(super) head_dim: usize,
}

impl Shape {
    pub(super) fn of(queries: &Tensor, groups: usize) -> Result<Self> {
        let (rows, heads, head_dim) = queries.dims3()?;
        Ok(Self { float: Float::of(queries)?, rows, heads, groups, head_dim })
    }

    /// Query heads per key/value head.
    pub(super) fn share(self) -> usize {
        self.heads / self.groups
    }
}

/// Small tables that a kernel reads, in one tensor.
pub(super) struct Table(pub(super) Vec<u32>);

impl Table {
    pub(super) fn new(words: impl IntoIterator<Item = u32>) -> Self {
        Self(words.into_iter().collect())
    }

    /// Appends words; returns at which word they start.
    pub(super) fn append(&mut self, words: impl IntoIterator<Item = u32>) -> usize {
        let start = self.0.len();
        self.0.extend(words);
        start
    }

    pub(super) fn upload(self, device: &Device) -> Result<Tensor> {
        let length = self.0.len();
        Tensor::from_vec(self.0, length, device)
    }
}

/// A list of tiles in a table.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    /// The word at which it starts.
    pub(super) start: usize,
    pub(super) count: usize,
}

impl Tiles {
    pub(super) fn append(tiles: &[[u32; 2]], table: &mut Table) -> Self {
        Self { start: table.append(tiles.iter().flatten().copied()), count: tiles.len() }
    }
}

impl PackedAttention {
    /// Rows of each sequence.
    pub(super) fn counts(&self) -> Vec<usize> {
        self.starts.windows(2).map(|pair| (pair[1] - pair[0]) as usize).collect()
    }

    /// Appends the tiles of `rows` queries.
    pub(super) fn query_tiles(&self, rows: usize, table: &mut Table) -> Tiles {
        let (counts, sight) = (self.counts(), self.sight());
        let work = |segment: usize, first, last| sight.keys(first, last, counts[segment]);
        Tiles::append(&tiles(&counts, rows, work), table)
    }

    /// Appends the tiles of `rows` keys.
    pub(super) fn key_tiles(&self, rows: usize, table: &mut Table) -> Tiles {
        let (counts, sight) = (self.counts(), self.sight());
        let work = |segment: usize, first, last| sight.queries(first, last, counts[segment]);
        Tiles::append(&tiles(&counts, rows, work), table)
    }

    fn sight(&self) -> Sight {
        Sight { causal: self.causal, window: self.params.window }
    }
}

impl AttentionParams {
    /// The window as kernels take it: 0 for none. One that no sequence fills is none.
    pub(super) fn window_or_zero(&self) -> u32 {
        self.window.and_then(|window| i32::try_from(window).ok()).map_or(0, i32::unsigned_abs)
    }

    /// The cap as kernels take it: 0 for none.
    pub(super) fn cap_or_zero(&self) -> f32 {
        self.soft_cap.unwrap_or(0.)
    }
}

/// The tensor itself, or a copy that kernels can read: rows in pieces of 16 bytes.
pub(super) fn aligned(tensor: &Tensor) -> Result<Tensor> {
    let layout = tensor.layout();
    let whole = |elements: usize| (elements * tensor.dtype().size_in_bytes()).is_multiple_of(16);
    if has_dense_rows(layout) && whole(layout.start_offset()) && whole(layout.stride()[0]) {
        return Ok(tensor.clone());
    }
    tensor.force_contiguous()
}

/// Chunks of keys and values have the queries' type and one length, and lie in one piece.
pub(super) fn check_chunk(tensor: &Tensor, length: usize, float: Float) -> Result<()> {
    if tensor.dtype() != float.dtype() {
        let (found, expected) = (tensor.dtype(), float.dtype());
        bail!("attention: a chunk has dtype {found:?}, expected {expected:?} like `queries`");
    }
    if tensor.dims()[0] != length {
        let found = tensor.dims()[0];
        bail!(
            "attention: a chunk has {found} positions, another {length}; on a GPU all have the same number"
        );
    }
    let start = tensor.layout().start_offset() * tensor.dtype().size_in_bytes();
    if !tensor.is_contiguous() || !start.is_multiple_of(16) {
        bail!("attention: a chunk is not contiguous from a multiple of 16 bytes on; copy it");
    }
    Ok(())
}

/// A dense result of the shape of a tensor.
///
/// # Safety
/// As [`Fresh::uninitialized`].
pub(super) unsafe fn like(tensor: &Tensor) -> Result<Fresh> {
    // SAFETY: the caller's promise.
    unsafe { Fresh::uninitialized(tensor.shape(), tensor.dtype(), tensor.device()) }
}
