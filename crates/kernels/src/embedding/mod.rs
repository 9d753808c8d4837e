//! Token embedding: a gather of rows, widened to the compute dtype.

mod reference;

use candle_core::{DType, Result, Tensor};

/// `table [vocab, D]`, `ids` (host) → `[ids.len(), D]` in `compute`, each row multiplied by `scale`.
pub fn embedding(table: &Tensor, ids: &[u32], scale: f32, compute: DType) -> Result<Tensor> {
    reference::embedding(table, ids, scale, compute)
}
