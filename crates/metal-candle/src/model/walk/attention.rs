//! The attention half of a block, for training: packed sequences, nothing cached.

use candle_core::{Result, Tensor};
use metal_candle_kernels::{
    attention::{AttentionParams, packed_attention_backward, packed_attention_forward},
    linear::{linear, linear_many},
    rms_norm::{RmsNorm, rms_norm_backward},
    rope::rope_backward,
};

use super::{
    BlockGradients, Shared, add_norm_gradient,
    part::{self, PartOf, SavedParts},
};
use crate::{
    lora::{BlockAdapter, Part},
    model::{layers::Attention, spec::QkNorm},
};

/// What the way back needs.
pub(super) struct SavedAttention {
    /// Before their norms, where there are norms: `[T, heads · head_dim]`.
    queries_before: Option<Tensor>,
    keys_before: Option<Tensor>,
    queries: Tensor, // [T, heads, head_dim], rotated
    keys: Tensor,    // [T, kv_heads, head_dim], rotated
    values: Tensor,  // [T, kv_heads, head_dim]
    mixed: Tensor,   // [T, heads, head_dim]
    lse: Tensor,     // [heads, T]
    input_parts: SavedParts<3>,
    output_part: SavedParts<1>,
}

/// The products of a block's input.
const INPUT_PARTS: [Part; 3] = [Part::Queries, Part::Keys, Part::Values];

/// `x [T, hidden] → [T, hidden]`
pub(super) fn forward(
    attention: &Attention,
    x: &Tensor,
    layer: usize,
    adapter: Option<&BlockAdapter>,
    shared: &Shared<'_>,
) -> Result<(Tensor, SavedAttention)> {
    let count = x.dim(0)?;
    let spec = &attention.spec;
    let part = |part| PartOf::new(part, layer, attention.projection(part), adapter);
    let [queries, keys, values] = linear_many(x, [&attention.queries, &attention.keys, &attention.values])?;
    let input_parts = part::adapt(INPUT_PARTS.map(part), x, [&queries, &keys, &values], shared)?;

    let before = |norm: &Option<RmsNorm>, x: &Tensor| norm.as_ref().map(|_| x.clone());
    let queries_before = before(&attention.query_norm, &queries);
    let keys_before = before(&attention.key_norm, &keys);
    let rotations = &shared.rotations;
    let queries = attention.position(queries, spec.heads, attention.query_norm.as_ref(), rotations)?;
    let keys = attention.position(keys, spec.kv_heads, attention.key_norm.as_ref(), rotations)?;
    let values = values.reshape((count, spec.kv_heads, spec.head_dim))?;
    let packing = shared.packing(params(attention));
    let (mixed, lse) = packed_attention_forward(&queries, &keys, &values, &packing)?;

    let flat = mixed.reshape((count, spec.query_size()))?;
    let y = linear(&flat, &attention.output)?;
    let output_part = part::adapt([part(Part::Output)], &flat, [&y], shared)?;
    let saved = SavedAttention {
        queries_before,
        keys_before,
        queries,
        keys,
        values,
        mixed,
        lse,
        input_parts,
        output_part,
    };
    Ok((y, saved))
}

/// The gradient of `x` from that of the result, if it is `wanted`.
#[allow(clippy::too_many_arguments)]
pub(super) fn back(
    attention: &Attention,
    x: &Tensor,
    saved: SavedAttention,
    dy: &Tensor,
    layer: usize,
    wanted: bool,
    adapter: Option<&BlockAdapter>,
    shared: &Shared<'_>,
    gradients: &BlockGradients,
) -> Result<Option<Tensor>> {
    let count = x.dim(0)?;
    let spec = &attention.spec;
    let part = |part| PartOf::new(part, layer, attention.projection(part), adapter);
    let flat = saved.mixed.reshape((count, spec.query_size()))?;
    let output = [part(Part::Output)];
    let d_mixed = part::back(output, &flat, &saved.output_part, [dy], true, shared, &gradients.parts)?;
    let d_mixed = d_mixed.expect("asked for").reshape(saved.mixed.shape())?;
    let SavedAttention { queries, keys, values, mixed, lse, .. } = saved;
    let packing = shared.packing(params(attention));
    let (d_queries, d_keys, d_values) =
        packed_attention_backward(&queries, &keys, &values, &mixed, &lse, &d_mixed, &packing)?;
    drop((queries, keys, values, mixed, lse, d_mixed));

    let (norm, sum) = (attention.query_norm.as_ref(), &gradients.query_norm);
    let d_queries = position_back(attention, d_queries, saved.queries_before, norm, sum, shared)?;
    let (norm, sum) = (attention.key_norm.as_ref(), &gradients.key_norm);
    let d_keys = position_back(attention, d_keys, saved.keys_before, norm, sum, shared)?;
    let d_values = d_values.reshape((count, spec.key_size()))?;

    let d_products = [&d_queries, &d_keys, &d_values];
    part::back(INPUT_PARTS.map(part), x, &saved.input_parts, d_products, wanted, shared, &gradients.parts)
}

/// Back through rotation and norm: `[T, heads, head_dim] → [T, heads · head_dim]`.
fn position_back(
    attention: &Attention,
    dy: Tensor,
    before: Option<Tensor>,
    norm: Option<&RmsNorm>,
    sum: &Option<Tensor>,
    shared: &Shared<'_>,
) -> Result<Tensor> {
    let (count, heads, head_dim) = dy.dims3()?;
    let dy = match attention.spec.rope {
        Some(index) => rope_backward(&dy, &shared.rotations[index])?,
        None => dy,
    };
    let flat = (count, heads * head_dim);
    let (Some(norm), Some(before)) = (norm, before) else { return dy.reshape(flat) };
    let split = (count, heads, head_dim);
    let (x, dy) = match attention.spec.qk_norm {
        QkNorm::Whole => (before, dy.reshape(flat)?),
        _ => (before.reshape(split)?, dy),
    };
    add_norm_gradient(sum, &x, norm, &dy, 1.0)?;
    rms_norm_backward(&x, norm, &dy, None)?.reshape(flat)
}

fn params(attention: &Attention) -> AttentionParams {
    let spec = &attention.spec;
    AttentionParams { scale: spec.scale, soft_cap: spec.soft_cap, window: spec.window }
}
