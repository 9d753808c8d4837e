//! The GPU implementations: NVIDIA's have tensor cores and read the cache through addresses, Apple's have simdgroup matrices
//! and one buffer per chunk.

mod call;
#[cfg(feature = "cuda")]
mod cuda;
mod metal;
mod tiles;

use candle_core::{Result, Tensor, bail};

use super::{AttentionParams, KvChunk, PackedAttention, Segment};
use crate::{device::runs_kernels, fresh::Fresh};

/// The largest head that the kernels keep in registers.
const MOST_HEAD_DIM: usize = 256;
/// Heads come in pieces of so many elements: at least 16 bytes.
const PIECE: usize = 8;

/// Whether the kernels cannot take heads of this size as they are, but padded with zeros.
pub(super) fn pads(queries: &Tensor) -> bool {
    runs_kernels(queries.device()) && queries.dims().last().is_some_and(|size| !size.is_multiple_of(PIECE))
}

/// The tensor with zeros behind each head.
pub(super) fn padded(tensor: &Tensor) -> Result<Tensor> {
    let head_dim = tensor.dims()[2];
    tensor.pad_with_zeros(2, 0, head_dim.next_multiple_of(PIECE) - head_dim)
}

/// The output, and its lse. Inputs have dense rows.
pub(super) fn forward(
    operation: &str,
    inputs: [&Tensor; 3],
    packing: &PackedAttention,
) -> Result<(Fresh, Fresh)> {
    check(operation, inputs[0], packing.params)?;
    match inputs[0].device() {
        #[cfg(feature = "cuda")]
        candle_core::Device::Cuda(device) => cuda::packed::forward(device, inputs, packing),
        _ => metal::forward(inputs, packing),
    }
}

/// The gradients of queries, keys and values. All inputs (these, the output and its gradient) have dense rows, `lse` is
/// contiguous.
pub(super) fn backward(
    operation: &str,
    inputs: [&Tensor; 5],
    lse: &Tensor,
    packing: &PackedAttention,
) -> Result<[Fresh; 3]> {
    check(operation, inputs[0], packing.params)?;
    match inputs[0].device() {
        #[cfg(feature = "cuda")]
        candle_core::Device::Cuda(device) => cuda::packed::backward(device, inputs, lse, packing),
        _ => metal::backward(inputs, lse, packing),
    }
}

/// Against the cache.
pub(super) fn cached(queries: &Tensor, segments: &[Segment<'_>], params: AttentionParams) -> Result<Tensor> {
    check("attention", queries, params)?;
    if pads(queries) {
        return cached_with_padding(queries, segments, params);
    }
    match queries.device() {
        #[cfg(feature = "cuda")]
        candle_core::Device::Cuda(device) => {
            Ok(cuda::cached::attention(device, queries, segments, params)?.into_tensor())
        }
        _ => Ok(metal::attention(queries, segments, params)?.into_tensor()),
    }
}

/// Copies all that is cached: for heads of sizes that only tests have.
fn cached_with_padding(
    queries: &Tensor,
    segments: &[Segment<'_>],
    params: AttentionParams,
) -> Result<Tensor> {
    let pad = |chunk: &&KvChunk| Ok(KvChunk { keys: padded(&chunk.keys)?, values: padded(&chunk.values)? });
    let chunks = segments.iter().map(|segment| segment.chunks.iter().map(pad).collect());
    let chunks: Vec<Vec<KvChunk>> = chunks.collect::<Result<_>>()?;
    let segments = segments.iter().zip(&chunks);
    let segments = segments.map(|(Segment { rows, start, end, .. }, chunks)| Segment {
        rows: rows.clone(),
        start: *start,
        end: *end,
        chunks: chunks.iter().collect(),
    });
    let out = cached(&padded(queries)?, &segments.collect::<Vec<_>>(), params)?;
    out.narrow(2, 0, queries.dims()[2])?.contiguous()
}

fn check(operation: &str, queries: &Tensor, params: AttentionParams) -> Result<()> {
    let head_dim = queries.dims()[2];
    if head_dim > MOST_HEAD_DIM {
        bail!(
            "{operation}: on a GPU the head size is at most {MOST_HEAD_DIM}, not {head_dim}; use the CPU for larger ones"
        );
    }
    // The running maximum is taken of the scores before they are scaled.
    if !(params.scale.is_finite() && params.scale > 0.) {
        bail!("{operation}: `scale` is {}, expected a positive number on a GPU", params.scale);
    }
    Ok(())
}
