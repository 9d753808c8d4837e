//! Prints how fast dense layers run on this machine, beside a plain read of the same memory.
//!
//! `cargo run --release -p metal-candle-kernels --example linear_speed [few|many]`
#![allow(clippy::print_stdout, missing_docs)]

use std::{hint::black_box, ops::BitOrAssign, time::Instant};

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor};
use metal_candle_kernels::{
    linear::{Activation, Projection, gated_linear, linear},
    pool, simd,
};

const REPEATS: usize = 15;

fn main() -> Result<()> {
    let which = std::env::args().nth(1);
    println!("{} threads, {}", pool::threads(), simd::level());
    region_cost();
    if which.as_deref() != Some("many") {
        few_rows()?;
    }
    if which.as_deref() != Some("few") {
        many_rows()?;
    }
    Ok(())
}

fn region_cost() {
    let rounds = 20_000;
    let seconds = median(|| (0..rounds).for_each(|_| pool::for_each(16, &|index| _ = black_box(index))));
    println!("an empty region of 16 tasks: {:.2} us", seconds / f64::from(rounds) * 1e6);
}

/// Several copies of the weights, so that caches do not hold them from one call to the next.
fn few_rows() -> Result<()> {
    println!(
        "{:>6} {:>7} {:>6} {:>5} {:>9} {:>9} {:>9} {:>6}",
        "dtype", "N", "K", "M", "us", "GB/s", "read", "%"
    );
    for dtype in [DType::BF16, DType::F32, DType::F16] {
        for (outputs, inputs) in [(151_936, 896), (4864, 896), (896, 4864), (896, 896)] {
            let bytes = outputs * inputs * dtype.size_in_bytes();
            let copies = ((600 << 20) / bytes).clamp(1, 100);
            let weights = (0..copies).map(|_| weight(outputs, inputs, dtype)).collect::<Result<Vec<_>>>()?;
            for rows in [1, 2, 4, 8] {
                let x = input(rows, inputs)?;
                let seconds = median(|| {
                    for weight in &weights {
                        black_box(linear(&x, weight).expect("valid shapes"));
                    }
                }) / copies as f64;
                let read = median(|| weights.iter().for_each(|weight| read(&weight.weight))) / copies as f64;
                let speed = |seconds: f64| bytes as f64 / seconds * 1e-9;
                println!(
                    "{:>6} {outputs:>7} {inputs:>6} {rows:>5} {:>9.1} {:>9.2} {:>9.2} {:>6.1}",
                    dtype.as_str(),
                    seconds * 1e6,
                    speed(seconds),
                    speed(read),
                    100. * read / seconds
                );
            }
        }
    }
    Ok(())
}

fn many_rows() -> Result<()> {
    println!("{:>6} {:>7} {:>6} {:>5} {:>9} {:>9}", "dtype", "N", "K", "M", "us", "GFLOP/s");
    for (outputs, inputs) in [(896, 896), (1152, 896), (4864, 896), (896, 4864)] {
        for rows in [16, 24, 32, 64, 128, 512] {
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                let (x, weight) = (input(rows, inputs)?, weight(outputs, inputs, dtype)?);
                let calls = 1 + 512 / rows;
                let seconds = median(|| {
                    (0..calls).for_each(|_| _ = black_box(linear(&x, &weight).expect("valid shapes")));
                }) / calls as f64;
                let speed = (2 * rows * outputs * inputs) as f64 / seconds * 1e-9;
                println!(
                    "{:>6} {outputs:>7} {inputs:>6} {rows:>5} {:>9.1} {speed:>9.1}",
                    dtype.as_str(),
                    seconds * 1e6
                );
            }
        }
    }
    for rows in [1, 8, 512] {
        let x = input(rows, 896)?;
        let (gate, up) = (weight(4864, 896, DType::BF16)?, weight(4864, 896, DType::BF16)?);
        let seconds = median(|| {
            black_box(gated_linear(&x, &gate, &up, Activation::Silu).expect("valid shapes"));
        });
        let speed = (4 * rows * 4864 * 896) as f64 / seconds * 1e-9;
        println!("gated bf16 4864 896 {rows:>5} {:>9.1} {speed:>9.1}", seconds * 1e6);
    }
    Ok(())
}

fn input(rows: usize, inputs: usize) -> Result<Tensor> {
    Tensor::randn(0f32, 1f32, (rows, inputs), &Device::Cpu)
}

fn weight(outputs: usize, inputs: usize, dtype: DType) -> Result<Projection> {
    let numbers: Vec<f32> = (0..outputs * inputs).map(|index| (index % 251) as f32 / 251.0 - 0.5).collect();
    let weight = Tensor::from_vec(numbers, (outputs, inputs), &Device::Cpu)?.to_dtype(dtype)?;
    Ok(Projection { weight, bias: None })
}

/// Reads all numbers and does next to nothing with them.
fn read(tensor: &Tensor) {
    let (storage, _) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { return };
    match storage {
        CpuStorage::F32(numbers) => read_parts(numbers, f32::to_bits),
        CpuStorage::BF16(numbers) => read_parts(numbers, half::bf16::to_bits),
        CpuStorage::F16(numbers) => read_parts(numbers, half::f16::to_bits),
        _ => {}
    }
}

fn read_parts<T: Copy + Sync, B: Copy + Default + BitOrAssign>(numbers: &[T], bits: impl Fn(T) -> B + Sync) {
    let part = (numbers.len() / (16 * pool::threads())).clamp(8192, 131_072);
    pool::for_each(numbers.len().div_ceil(part), &|index| {
        let mut seen = [B::default(); 128];
        for numbers in numbers[index * part..].chunks_exact(128).take(part / 128) {
            for (seen, &number) in seen.iter_mut().zip(numbers) {
                *seen |= bits(number);
            }
        }
        black_box(seen);
    });
}

fn median(mut body: impl FnMut()) -> f64 {
    body();
    let mut seconds: Vec<f64> = (0..REPEATS)
        .map(|_| {
            let start = Instant::now();
            body();
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[REPEATS / 2]
}
