//! The same arithmetic in plain candle ops.

use candle_core::{DType, Result, Tensor};

pub(super) fn embedding(table: &Tensor, ids: &[u32], scale: f32, compute: DType) -> Result<Tensor> {
    let ids = Tensor::new(ids, table.device())?;
    let rows = table.index_select(&ids, 0)?.to_dtype(compute)?;
    if scale == 1.0 { Ok(rows) } else { rows * f64::from(scale) }
}
