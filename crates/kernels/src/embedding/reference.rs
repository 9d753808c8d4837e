//! The definition in plain candle ops.

use candle_core::{DType, Result, Tensor};

pub(super) fn embedding(table: &Tensor, ids: &[u32], scale: f32, compute: DType) -> Result<Tensor> {
    let ids = Tensor::new(ids, table.device())?;
    table.index_select(&ids, 0)?.to_dtype(compute)? * f64::from(scale)
}
