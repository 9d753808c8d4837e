//! Times ops of this crate, forward and backward, as JSON lines for `benches/peers/ops.py`.
//!
//! `cargo run --release -p metal-candle-kernels --example op_speed -- linear lora`
#![allow(clippy::print_stdout, missing_docs)]

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use metal_candle_kernels::{
    linear::{self, Projection},
    lora::{self, LoraAdapter, LoraGradients},
};

fn main() -> Result<()> {
    for op in std::env::args().skip(1) {
        match op.as_str() {
            "linear" => linear()?,
            "lora" => lora()?,
            other => candle_core::bail!("op_speed knows no op `{other}`"),
        }
    }
    Ok(())
}

/// Rows, inputs, outputs of dense layers: those of qwen2.5-0.5b.
const LINEAR: [(usize, usize, usize); 5] =
    [(512, 896, 896), (512, 896, 128), (512, 896, 4864), (512, 4864, 896), (512, 896, 151_936)];

fn linear() -> Result<()> {
    for (rows, inputs, outputs) in LINEAR {
        for dtype in [DType::F32, DType::BF16] {
            let weight = random((outputs, inputs))?.to_dtype(dtype)?;
            let projection = Projection { weight, bias: None };
            let (x, dy) = (random((rows, inputs))?, random((rows, outputs))?);
            let case = format!("{rows}x{inputs}x{outputs} {}", dtype.as_str());
            report("linear", &case, "forward", || linear::linear(&x, &projection))?;
            report("linear", &case, "backward", || linear::linear_backward(&dy, &projection))?;
            if dtype == DType::F32 && outputs < 10_000 {
                report("linear", &case, "weight", || linear::linear_weight_backward(&x, &dy))?;
            }
        }
    }
    Ok(())
}

/// Rows, inputs, outputs and rank of adapters, decoding included.
const LORA: [(usize, usize, usize, usize); 8] = [
    (1, 896, 896, 8),
    (16, 896, 896, 8),
    (64, 512, 512, 8),
    (64, 2048, 2048, 8),
    (512, 896, 896, 8),
    (512, 896, 128, 8),
    (512, 896, 4864, 16),
    (512, 4864, 896, 64),
];

fn lora() -> Result<()> {
    for (rows, inputs, outputs, rank) in LORA {
        let adapter = LoraAdapter { a: random((rank, inputs))?, b: random((outputs, rank))?, scale: 2. };
        let (x, y, dy) = (random((rows, inputs))?, random((rows, outputs))?, random((rows, outputs))?);
        let case = format!("{rows}x{inputs}x{outputs} rank {rank}");
        let segment = [lora::LoraSegment { rows: 0..rows, adapter: &adapter }];
        report("lora", &case, "forward", || lora::lora_in_place(&x, &y, &segment))?;
        let projected = lora::lora_down(&x, &adapter)?;
        let (dx, da, db) = (x.zeros_like()?, adapter.a.zeros_like()?, adapter.b.zeros_like()?);
        let into = LoraGradients { dx: Some(&dx), da: &da, db: &db };
        report("lora", &case, "backward", || lora::lora_backward(&x, &dy, &adapter, &projected, &into))?;
        if rows == 512 {
            let weight = random((outputs, inputs))?;
            report("lora", &case, "dora norm", || lora::dora_norm(&weight, &adapter))?;
        }
    }
    Ok(())
}

fn random(shape: (usize, usize)) -> Result<Tensor> {
    Tensor::randn(0f32, 1f32, shape, &Device::Cpu)
}

/// Prints the time of a call that nobody disturbs: a tenth of the calls are faster.
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
    let ms = times[times.len() / 10];
    println!(r#"{{"op":"{op}","case":"{case}","pass":"{pass}","ms":{ms:.5}}}"#);
    Ok(())
}
