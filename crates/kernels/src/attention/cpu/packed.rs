//! Packed sequences: each is a segment whose cache is one chunk, its own rows.

use candle_core::{Result, Tensor};

use super::{Cached, Extent, backward as gradients, mixed};
use crate::{
    attention::PackedAttention,
    fresh::Fresh,
    output::filled,
    view::{StridedRows, View},
};

/// The output, and its lse. Inputs have dense rows.
pub(in super::super) fn forward(
    [queries, keys, values]: [&Tensor; 3],
    packing: &PackedAttention,
) -> Result<(Fresh, Fresh)> {
    let (rows, heads, head_dim) = queries.dims3()?;
    let groups = keys.dims()[1];
    let (keys, values) = with_one_stride(keys, values)?;
    let views = [queries, &keys, &values].map(View::new);
    let queries = views[0].f32_rows("packed_attention: `queries`")?;
    let keys = views[1].f32_rows("packed_attention: `keys`")?;
    let values = views[2].f32_rows("packed_attention: `values`")?;
    let segments = extents(packing, heads, groups).map(|(first_row, extent)| {
        let start = first_row * keys.stride;
        let chunk = [&keys.numbers[start..], &values.numbers[start..]];
        Cached { first_row, length: extent.count, stride: keys.stride, chunks: vec![chunk], extent }
    });
    let segments = segments.collect();
    let mut out = Vec::new();
    let run = |lse| out = mixed(queries, [rows, heads, head_dim], segments, packing.params, Some(lse));
    // SAFETY: `mixed` writes the lse of every row and head.
    let lse = unsafe { filled(heads * rows, run) };
    Ok((Fresh::from_vec(out, (rows, heads, head_dim)), Fresh::from_vec(lse, (heads, rows))))
}

/// The gradients of queries, keys and values. All inputs have dense rows, `lse` is contiguous.
pub(in super::super) fn backward(
    inputs: [&Tensor; 5],
    lse: &Tensor,
    packing: &PackedAttention,
) -> Result<[Fresh; 3]> {
    let [queries, keys, ..] = inputs;
    let ((rows, heads, head_dim), groups) = (queries.dims3()?, keys.dims()[1]);
    let lse = View::new(lse);
    let views = inputs.map(View::new);
    let input = |index: usize, name: &str| -> Result<StridedRows<'_>> {
        views[index].f32_rows(&format!("packed_attention_backward: `{name}`"))
    };
    let call = gradients::Call {
        queries: input(0, "queries")?,
        keys: input(1, "keys")?,
        values: input(2, "values")?,
        out: input(3, "out")?,
        d_out: input(4, "d_out")?,
        lse: lse.f32s("packed_attention_backward: `lse`")?,
        rows,
        heads,
        groups,
        head_dim,
        params: packing.params,
        segments: extents(packing, heads, groups).collect(),
    };
    let [mut d_keys, mut d_values] = [Vec::new(), Vec::new()];
    let fill_all = |d_queries| {
        let fill_others = |d_keys| {
            let run = |d_values| gradients::run(&call, gradients::Gradients { d_queries, d_keys, d_values });
            // SAFETY: every key's gradients and every query's are written.
            d_values = unsafe { filled(rows * groups * head_dim, run) };
        };
        // SAFETY: as above.
        d_keys = unsafe { filled(rows * groups * head_dim, fill_others) };
    };
    // SAFETY: as above.
    let d_queries: Vec<f32> = unsafe { filled(rows * heads * head_dim, fill_all) };
    let of_keys = |gradient| Fresh::from_vec(gradient, (rows, groups, head_dim));
    Ok([Fresh::from_vec(d_queries, (rows, heads, head_dim)), of_keys(d_keys), of_keys(d_values)])
}

/// First row and shape of each sequence.
fn extents(
    packing: &PackedAttention,
    heads: usize,
    groups: usize,
) -> impl Iterator<Item = (usize, Extent)> + '_ {
    packing.starts.windows(2).map(move |pair| {
        let [start, end] = [pair[0] as usize, pair[1] as usize];
        let count = end - start;
        let extent = Extent {
            count,
            start: 0,
            end: count,
            groups,
            share: heads / groups,
            window: packing.params.window,
            causal: packing.causal,
        };
        (start, extent)
    })
}

/// Keys and values as parts of one matrix, or of two that are alike, or dense.
fn with_one_stride(keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
    if keys.stride() == values.stride() {
        return Ok((keys.clone(), values.clone()));
    }
    Ok((keys.contiguous()?, values.contiguous()?))
}
