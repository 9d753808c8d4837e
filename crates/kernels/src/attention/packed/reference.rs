//! The definition in plain candle ops, in f64: what all devices are compared with, gradients included.

use candle_core::{D, DType, Device, Result, Tensor};

use super::PackedAttention;

/// The output `[T, H, D]` and the lse `[H, T]`.
pub(super) fn packed_attention(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    packing: &PackedAttention,
) -> Result<[Tensor; 2]> {
    let (mut outs, mut lses) = (Vec::new(), Vec::new());
    for pair in packing.starts.windows(2) {
        let (start, count) = (pair[0] as usize, (pair[1] - pair[0]) as usize);
        let [queries, keys, values] = [queries, keys, values].map(|all| all.narrow(0, start, count));
        let [out, lse] = one_sequence(&queries?, &keys?, &values?, packing)?;
        outs.push(out);
        lses.push(lse);
    }
    Ok([Tensor::cat(&outs, 0)?, Tensor::cat(&lses, 1)?])
}

fn one_sequence(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    packing: &PackedAttention,
) -> Result<[Tensor; 2]> {
    let ((count, heads, head_dim), groups) = (queries.dims3()?, keys.dim(1)?);
    let share = heads / groups;
    let queries = queries.reshape((count, groups, share, head_dim))?.permute((1, 2, 0, 3))?;
    let queries = queries.reshape((groups, share * count, head_dim))?;
    let keys = keys.permute((1, 2, 0))?.contiguous()?; // [G, D, count]
    let values = values.permute((1, 0, 2))?.contiguous()?; // [G, count, D]

    let mut scores = (queries.matmul(&keys)? * f64::from(packing.params.scale))?;
    if let Some(cap) = packing.params.soft_cap {
        scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
    }
    let scores = scores.reshape((groups, share, count, count))?;
    let scores = scores.broadcast_add(&mask(count, packing)?)?;
    let largest = scores.detach().max_keepdim(D::Minus1)?;
    let weights = scores.broadcast_sub(&largest)?.exp()?;
    let total = weights.sum_keepdim(D::Minus1)?;
    let lse = (total.log()? + largest)?.reshape((heads, count))?;
    let weights = weights.broadcast_div(&total)?.reshape((groups, share * count, count))?;
    let mixed = weights.matmul(&values)?.reshape((groups, share, count, head_dim))?;
    let out = mixed.permute((2, 0, 1, 3))?.reshape((count, heads, head_dim))?;
    Ok([out, lse])
}

/// `[count, count]`: 0 where a row sees a key, −∞ elsewhere.
fn mask(count: usize, packing: &PackedAttention) -> Result<Tensor> {
    let sees = |row: usize, key: usize| {
        !packing.causal || key <= row && packing.params.window.is_none_or(|window| key + window > row)
    };
    let rows = (0..count).flat_map(|row| (0..count).map(move |key| (row, key)));
    let mask: Vec<f64> = rows.map(|(row, key)| if sees(row, key) { 0. } else { f64::NEG_INFINITY }).collect();
    Tensor::from_vec(mask, (count, count), &Device::Cpu)?.to_dtype(DType::F64)
}
