//! Token embedding: a gather of rows, widened to the compute dtype.

mod cpu;
mod gpu;
#[cfg(test)]
mod reference;

use candle_core::{DType, Result, Tensor, bail};

use crate::{
    cast::cast,
    device::{narrow_on_cpu, runs_kernels},
    graph::record1,
    trace::{self, Work},
};

/// `table [vocab, D]`, `ids` (host) → `[ids.len(), D]` in `compute`, each row multiplied by `scale`.
pub fn embedding(table: &Tensor, ids: &[u32], scale: f32, compute: DType) -> Result<Tensor> {
    let _op = trace::op("embedding", table.device(), || Work::gathered(table, ids.len(), compute));
    let &[vocabulary, _width] = table.dims() else {
        bail!("embedding: `table` is {:?}, expected [vocab, D]", table.dims());
    };
    check("embedding", ids, vocabulary)?;
    if !runs_kernels(table.device()) && compute != DType::F32 {
        return cast(&embedding(table, ids, scale, DType::F32)?, compute, 1.);
    }
    if runs_kernels(table.device()) && compute != table.dtype() {
        return cast(&embedding(table, ids, 1., table.dtype())?, compute, scale);
    }
    let dense = table.contiguous()?;
    let rows = if runs_kernels(table.device()) {
        gpu::embedding(&dense, ids, scale)
    } else {
        cpu::embedding(&dense, ids, scale)
    }?;
    if !table.track_op() {
        return Ok(rows.into_tensor());
    }
    let ids = ids.to_vec();
    record1("embedding", rows, table, move |[table], _, dy| {
        Ok([Some(embedding_backward(&ids, dy, vocabulary, scale)?.to_dtype(table.dtype())?)])
    })
}

/// The gradient of [`embedding`]'s table, `[vocab, D]` in f32, from that of its result, `dy [ids.len(), D]`. Rows
/// of one id are summed in their order, so that the result is always the same.
pub fn embedding_backward(ids: &[u32], dy: &Tensor, vocabulary: usize, scale: f32) -> Result<Tensor> {
    let _op = trace::op("embedding_backward", dy.device(), || {
        Work::elementwise(dy, 1, 1).and(4 * (vocabulary * dy.elem_count() / ids.len().max(1)) as u64, 0)
    });
    check("embedding_backward", ids, vocabulary)?;
    match *dy.dims() {
        [rows, _width] if rows == ids.len() => {}
        ref found => bail!("embedding_backward: `dy` is {found:?}, expected [{}, D]", ids.len()),
    }
    if narrow_on_cpu(dy) {
        return embedding_backward(ids, &dy.to_dtype(DType::F32)?, vocabulary, scale);
    }
    let (used, dy) = (Used::of(ids)?, dy.contiguous()?);
    if runs_kernels(dy.device()) {
        gpu::backward(&used, &dy, vocabulary, scale)
    } else {
        cpu::backward(&used, &dy, vocabulary, scale)
    }
}

/// The distinct ids and where they are used.
struct Used {
    ids: Vec<UsedId>,
    /// The rows, those of one id together and in their order.
    order: Vec<u32>,
}

/// An id and its part of the order.
struct UsedId {
    id: u32,
    first: u32,
    end: u32,
}

impl Used {
    fn of(ids: &[u32]) -> Result<Self> {
        // An id above its row: sorted as one number, without looking an id up for each comparison.
        let rows = 0..u32::try_from(ids.len())?;
        let mut keys: Vec<u64> =
            rows.zip(ids).map(|(row, id)| u64::from(*id) << 32 | u64::from(row)).collect();
        keys.sort_unstable();
        let order: Vec<u32> = keys.into_iter().map(|key| key as u32).collect();
        let mut used = Vec::new();
        let mut first = 0;
        for rows in order.chunk_by(|&left, &right| ids[left as usize] == ids[right as usize]) {
            let end = first + rows.len() as u32;
            used.push(UsedId { id: ids[rows[0] as usize], first, end });
            first = end;
        }
        Ok(Self { ids: used, order })
    }
}

fn check(operation: &str, ids: &[u32], vocabulary: usize) -> Result<()> {
    if let Some((index, id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= vocabulary) {
        bail!("{operation}: id {id} at index {index} is outside the vocabulary of {vocabulary}");
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod suite;
#[cfg(test)]
mod tests;
