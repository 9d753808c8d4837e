//! The KV cache of one sequence: owned by the sequence, passed to the model, never copied to grow.
//!
//! Every layer keeps its keys and values in chunks of [`CHUNK`] positions. Appending writes in place;
//! a fork shares all chunks and copies one only when it has to write into it; a sliding-window layer lets
//! go of chunks that no later query can see.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use candle_core::{DType, Device, Tensor};
use metal_candle_kernels::{attention::KvChunk, trace};

use crate::model::{ModelError, spec::DecoderSpec};

/// Positions per chunk.
pub const CHUNK: usize = 128;

/// Keys and values of every layer for the positions seen so far.
#[derive(Debug, Clone)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    length: usize,
    expected_length: usize,
}

/// The part of one layer.
#[derive(Debug, Clone)]
pub(crate) struct LayerCache {
    chunks: VecDeque<Arc<KvChunk>>,
    /// Position of the first element of the first chunk; a multiple of [`CHUNK`].
    start: usize,
    shape: (usize, usize), // (kv_heads, head_dim)
    window: Option<usize>,
    dtype: DType,
    device: Device,
}

impl KvCache {
    /// An empty cache for a model of this spec.
    pub fn new(spec: &DecoderSpec, dtype: DType, device: &Device) -> Self {
        let layers = spec.layers.iter().map(|layer| LayerCache {
            chunks: VecDeque::new(),
            start: 0,
            shape: (layer.attention.kv_heads, layer.attention.head_dim),
            window: layer.attention.window,
            dtype,
            device: device.clone(),
        });
        Self { layers: layers.collect(), length: 0, expected_length: 0 }
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether no position is held.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Bytes of all chunks, shared ones included.
    pub fn bytes(&self) -> usize {
        let chunk =
            |layer: &LayerCache| 2 * CHUNK * layer.shape.0 * layer.shape.1 * layer.dtype.size_in_bytes();
        self.layers.iter().map(|layer| layer.chunks.len() * chunk(layer)).sum()
    }

    /// Announces how long the prompt will be when it arrives in pieces: rotary embeddings that depend on the
    /// length then turn every piece as if the prompt had arrived whole.
    pub fn expect(&mut self, length: usize) {
        self.expected_length = length;
    }

    /// The length by which rotary embeddings go, once `new` more positions are in.
    pub(crate) fn rotary_length(&self, new: usize) -> usize {
        (self.length + new).max(self.expected_length)
    }

    /// Forgets everything from position `length` on.
    ///
    /// Fails when a sliding-window layer has already let go of positions that the next query needs.
    pub fn truncate(&mut self, length: usize) -> Result<(), ModelError> {
        if length > self.length {
            return Err(ModelError::CacheTruncate { length, held: self.length });
        }
        let lost = |layer: &LayerCache| length > 0 && layer.start > layer.first_needed(length);
        if self.layers.iter().any(lost) {
            return Err(ModelError::CacheWindowLost { length });
        }
        for layer in &mut self.layers {
            layer.truncate(length);
        }
        self.length = length;
        self.expected_length = 0;
        Ok(())
    }

    /// A second cache with the same content; memory is shared until one of them writes.
    #[must_use]
    pub fn fork(&self) -> Self {
        self.clone()
    }

    pub(crate) fn layer(&mut self, index: usize) -> &mut LayerCache {
        &mut self.layers[index]
    }

    /// Counts `new` positions whose keys and values every layer has been given.
    pub(crate) fn advance(&mut self, new: usize) {
        self.length += new;
        for layer in &mut self.layers {
            layer.forget_unseen(self.length);
        }
    }
}

impl LayerCache {
    /// Writes `rows` of `keys` and `values`, both `[n, kv_heads, head_dim]`, at `position` and the ones after it.
    pub(crate) fn write(
        &mut self,
        position: usize,
        keys: &Tensor,
        values: &Tensor,
        rows: Range<usize>,
    ) -> candle_core::Result<()> {
        let mut first = rows.start;
        while first < rows.end {
            let slot = position + (first - rows.start) - self.start;
            let (chunk, offset) = (slot / CHUNK, slot % CHUNK);
            let end = rows.end.min(first + CHUNK - offset);
            self.writable(chunk)?.write(offset, keys, values, first..end)?;
            first = end;
        }
        Ok(())
    }

    /// Position of the first element, and the chunks.
    pub(crate) fn chunks(&self) -> (usize, Vec<&KvChunk>) {
        (self.start, self.chunks.iter().map(AsRef::as_ref).collect())
    }

    /// The chunk at `index`, made if it is the next one, copied if another cache holds it too.
    fn writable(&mut self, index: usize) -> candle_core::Result<&KvChunk> {
        if index == self.chunks.len() {
            let shape = (CHUNK, self.shape.0, self.shape.1);
            let keys = Tensor::zeros(shape, self.dtype, &self.device)?;
            let values = Tensor::zeros(shape, self.dtype, &self.device)?;
            self.chunks.push_back(Arc::new(KvChunk { keys, values }));
        }
        let chunk = &mut self.chunks[index];
        if Arc::get_mut(chunk).is_none() {
            trace::launched(2);
            *chunk = Arc::new(KvChunk { keys: chunk.keys.copy()?, values: chunk.values.copy()? });
        }
        Ok(chunk)
    }

    /// The first position that a query at `position` looks at.
    fn first_needed(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    fn forget_unseen(&mut self, next_query: usize) {
        let needed = self.first_needed(next_query);
        while self.start + CHUNK <= needed && !self.chunks.is_empty() {
            self.chunks.pop_front();
            self.start += CHUNK;
        }
    }

    fn truncate(&mut self, length: usize) {
        if length == 0 {
            self.chunks.clear();
            self.start = 0;
            return;
        }
        let kept = length.saturating_sub(self.start).div_ceil(CHUNK);
        self.chunks.truncate(kept);
    }
}
