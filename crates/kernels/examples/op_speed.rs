//! Times ops of this crate, forward and backward, as JSON lines for `benches/peers/ops.py`.
//!
//! `cargo run --release -p metal-candle-kernels --example op_speed -- attention`
#![allow(clippy::print_stdout, missing_docs)]

use std::time::Instant;

use candle_core::{Device, Result, Shape, Tensor};
use metal_candle_kernels::attention::{
    AttentionParams, PackedAttention, packed_attention_backward, packed_attention_forward,
};

fn main() -> Result<()> {
    for op in std::env::args().skip(1) {
        match op.as_str() {
            "attention" => attention()?,
            other => candle_core::bail!("op_speed knows no op `{other}`"),
        }
    }
    Ok(())
}

/// One causal sequence of so many rows, with the heads of qwen2.5-0.5b.
fn attention() -> Result<()> {
    let (heads, groups, head_dim) = (14, 2, 64);
    for rows in [512, 2048] {
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

fn random(shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::randn(0f32, 1f32, shape, &Device::Cpu)
}

/// Prints the median time of a call.
fn report<T>(op: &str, case: &str, pass: &str, mut call: impl FnMut() -> Result<T>) -> Result<()> {
    call()?;
    let mut times = Vec::new();
    let begin = Instant::now();
    while times.len() < 5 || (begin.elapsed().as_secs_f64() < 0.3 && times.len() < 1000) {
        let start = Instant::now();
        call()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let ms = times[times.len() / 2];
    println!(r#"{{"op":"{op}","case":"{case}","pass":"{pass}","ms":{ms:.5}}}"#);
    Ok(())
}
