//! Times ops of this crate, forward and backward, as JSON lines for `benches/peers/ops.py`.
//!
//! `cargo run --release -p metal-candle-kernels --example op_speed -- lm_head_loss top_k`
#![allow(clippy::print_stdout, missing_docs)]

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use metal_candle_kernels::{
    cross_entropy::{HeadWeight, LossParams, lm_head_loss as lm_head_loss_of, lm_head_loss_and_gradients},
    linear::Projection,
    sample::{argmax, top_k as top_k_of},
};

fn main() -> Result<()> {
    for op in std::env::args().skip(1) {
        match op.as_str() {
            "lm_head_loss" => lm_head_loss()?,
            "top_k" => top_k()?,
            other => candle_core::bail!("op_speed knows no op `{other}`"),
        }
    }
    Ok(())
}

/// Tokens, hidden size, vocabulary: those of qwen2.5-0.5b, and a few tokens of it.
const LOSSES: [(usize, usize, usize); 2] = [(512, 896, 151_936), (16, 896, 151_936)];

fn lm_head_loss() -> Result<()> {
    for (tokens, width, vocabulary) in LOSSES {
        for dtype in [DType::F32, DType::BF16] {
            let head = Projection { weight: random((vocabulary, width))?.to_dtype(dtype)?, bias: None };
            let hidden = random((tokens, width))?;
            let targets: Vec<u32> = (0..tokens).map(|token| (token * 7919 % vocabulary) as u32).collect();
            let case = format!("{tokens}x{width}x{vocabulary} {}", dtype.as_str());
            let params = LossParams::default();
            report("lm_head_loss", &case, "forward", || lm_head_loss_of(&hidden, &head, &targets, &params))?;
            report("lm_head_loss", &case, "backward", || {
                lm_head_loss_and_gradients(&hidden, &head, &targets, &params, HeadWeight::Frozen)
            })?;
        }
    }
    Ok(())
}

fn top_k() -> Result<()> {
    for (rows, vocabulary, k) in [(1, 151_936, 1), (16, 151_936, 1), (1, 151_936, 50), (16, 151_936, 50)] {
        let logits = random((rows, vocabulary))?;
        let case = format!("{rows}x{vocabulary}x{k}");
        if k == 1 {
            report("top_k", &case, "forward", || argmax(&logits))?;
        } else {
            report("top_k", &case, "forward", || top_k_of(&logits, k))?;
        }
    }
    Ok(())
}

fn random(shape: (usize, usize)) -> Result<Tensor> {
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
