//! Token embedding: a gather of rows, widened to the compute dtype.

mod cpu;
mod reference;

use candle_core::{DType, Result, Tensor, bail};

/// `table [vocab, D]`, `ids` (host) → `[ids.len(), D]` in `compute`, each row multiplied by `scale`.
pub fn embedding(table: &Tensor, ids: &[u32], scale: f32, compute: DType) -> Result<Tensor> {
    let &[vocabulary, _width] = table.dims() else {
        bail!("embedding: `table` is {:?}, expected [vocab, D]", table.dims());
    };
    if let Some((index, id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= vocabulary) {
        bail!("embedding: id {id} at index {index} is outside the vocabulary of {vocabulary}");
    }
    if table.device().is_cpu() {
        cpu::embedding(table, ids, scale, compute)
    } else {
        reference::embedding(table, ids, scale, compute)
    }
}

#[cfg(test)]
mod tests;
