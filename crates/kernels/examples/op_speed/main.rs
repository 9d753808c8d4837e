//! Times ops of this crate, forward and backward, as JSON lines for `benches/peers/suite.py`.
//!
//! `cargo run --release -p metal-candle-kernels --example op_speed -- attention linear lora`
#![allow(clippy::print_stdout, missing_docs)]

mod attention;
mod linear;
mod lora;
mod loss;
mod optimizer;
mod rows;

use std::time::Instant;

use candle_core::{Device, Result, Shape, Tensor};

/// As our program has it.
#[global_allocator]
static ALLOCATOR: metal_candle_kernels::memory::Allocator = metal_candle_kernels::memory::Allocator::new();

fn main() -> Result<()> {
    for op in std::env::args().skip(1) {
        match op.as_str() {
            "adamw" => optimizer::adamw()?,
            "attention" => attention::attention()?,
            "cast" => rows::cast()?,
            "embedding" => rows::embedding()?,
            "gated" => rows::gated()?,
            "layer_norm" => rows::layer_norm()?,
            "linear" => linear::linear()?,
            "lm_head_loss" => loss::lm_head_loss()?,
            "lora" => lora::lora()?,
            "rms_norm" => rows::rms_norm()?,
            "rope" => rows::rope()?,
            "softmax" => rows::softmax()?,
            "top_k" => loss::top_k()?,
            other => candle_core::bail!("op_speed knows no op `{other}`"),
        }
    }
    Ok(())
}

pub(crate) fn random(shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::randn(0f32, 1f32, shape, &Device::Cpu)
}

/// Prints the time of a call that nobody disturbs: a tenth of the calls are faster.
pub(crate) fn report<T>(op: &str, case: &str, pass: &str, mut call: impl FnMut() -> Result<T>) -> Result<()> {
    call()?;
    let mut times = Vec::new();
    let begin = Instant::now();
    while times.len() < 5 || (begin.elapsed().as_secs_f64() < 0.3 && times.len() < 1000) {
        let start = Instant::now();
        call()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let ms = times[times.len() / 10];
    println!(r#"{{"op":"{op}","case":"{case}","pass":"{pass}","ms":{ms:.5}}}"#);
    Ok(())
}
