//! Packed causal attention.

use candle_core::Result;
use metal_candle_kernels::attention::{
    AttentionParams, PackedAttention, packed_attention_backward, packed_attention_forward,
};

use crate::{random, report};

/// One causal sequence of so many rows, with the heads of qwen2.5-0.5b.
pub(crate) fn attention() -> Result<()> {
    let (heads, groups, head_dim) = (14, 2, 64);
    for rows in [512, 1024, 2048] {
        let [queries, d_out] = [random((rows, heads, head_dim))?, random((rows, heads, head_dim))?];
        let [keys, values] = [random((rows, groups, head_dim))?, random((rows, groups, head_dim))?];
        let params = AttentionParams { scale: 0.125, soft_cap: None, window: None };
        let packing = PackedAttention { starts: vec![0, rows as u32], params, causal: true };
        let forward = || packed_attention_forward(&queries, &keys, &values, &packing);
        report("attention", &rows.to_string(), "forward", forward)?;
        let (out, lse) = forward()?;
        report("attention", &rows.to_string(), "backward", || {
            packed_attention_backward(&queries, &keys, &values, &out, &lse, &d_out, &packing)
        })?;
    }
    Ok(())
}
