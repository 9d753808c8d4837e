//! The definition in plain candle ops, in f64; holds the whole score matrix of one segment.

use candle_core::{D, DType, Result, Tensor};

use super::{AttentionParams, Segment};

pub(super) fn attention(
    queries: &Tensor,
    segments: &[Segment<'_>],
    params: AttentionParams,
) -> Result<Tensor> {
    let mut outputs = Vec::with_capacity(segments.len());
    for segment in segments {
        outputs.push(one_segment(queries, segment, params)?);
    }
    Tensor::cat(&outputs, 0)
}

fn one_segment(queries: &Tensor, segment: &Segment<'_>, params: AttentionParams) -> Result<Tensor> {
    let count = segment.rows.len();
    let length = segment.end - segment.start;
    let (_rows, heads, head_dim) = queries.dims3()?;
    let keys: Vec<_> = segment.chunks.iter().map(|chunk| chunk.keys.clone()).collect();
    let values: Vec<_> = segment.chunks.iter().map(|chunk| chunk.values.clone()).collect();
    let keys = Tensor::cat(&keys, 0)?.narrow(0, 0, length)?.to_dtype(DType::F64)?; // [length, G, D]
    let values = Tensor::cat(&values, 0)?.narrow(0, 0, length)?.to_dtype(DType::F64)?;
    let groups = keys.dim(1)?;
    let share = heads / groups;

    let q = queries.narrow(0, segment.rows.start, count)?.to_dtype(DType::F64)?;
    let q = q.reshape((count, groups, share, head_dim))?.permute((1, 2, 0, 3))?; // [G, share, count, D]
    let q = q.reshape((groups, share * count, head_dim))?;
    let keys = keys.permute((1, 2, 0))?.contiguous()?; // [G, D, length]
    let values = values.permute((1, 0, 2))?.contiguous()?; // [G, length, D]

    let mut scores = (q.matmul(&keys)? * f64::from(params.scale))?;
    if let Some(cap) = params.soft_cap {
        scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
    }
    let scores = scores.reshape((groups, share, count, length))?;
    let scores = scores.broadcast_add(&mask(segment, params.window)?.to_device(queries.device())?)?;
    let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
    let mixed = weights.reshape((groups, share * count, length))?.matmul(&values)?;
    let mixed = mixed.reshape((groups, share, count, head_dim))?.permute((2, 0, 1, 3))?;
    mixed.reshape((count, heads, head_dim))?.to_dtype(queries.dtype())
}

/// `[count, length]`: 0 where a query may look, −∞ elsewhere.
fn mask(segment: &Segment<'_>, window: Option<usize>) -> Result<Tensor> {
    let count = segment.rows.len();
    let length = segment.end - segment.start;
    let mut mask = Vec::with_capacity(count * length);
    for row in 0..count {
        let query = segment.end - count + row;
        for key in segment.start..segment.end {
            let visible = key <= query && window.is_none_or(|window| key + window > query);
            mask.push(if visible { 0f64 } else { f64::NEG_INFINITY });
        }
    }
    Tensor::from_vec(mask, (count, length), &candle_core::Device::Cpu)
}
