//! What this machine can do at most, as one line of JSON: how fast all threads together read working sets of each size, and
//! how fast one thread copies little into them, or how fast a device copies them; how fast matrices are multiplied, in
//! f32 and as a model does, with weights of bf16; and how long the lock of a tensor takes that nobody else wants.
//! `METAL_CANDLE_BENCH_DEVICE` names the device.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{
    process::ExitCode,
    sync::{Barrier, PoisonError, RwLock},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use metal_candle::device::{self, BandwidthProbe};
use metal_candle_benches::Bench;
use metal_candle_kernels::linear::{Projection, linear};
use serde_json::{Value, json};

/// Each reading; the best of [`TRIES`] counts, because what disturbs one is no limit of the machine.
const READING: Duration = Duration::from_millis(15);
const TRIES: usize = 5;
/// From what the nearest cache holds up to far more than the last.
const SMALLEST: usize = 32 << 10;
const LARGEST_CACHED: usize = 64 << 20;
const MAIN_MEMORY: usize = 512 << 20;
/// What one thread copies, again and again, and the working sets that it copies it to.
const COPIED: usize = 1 << 10;
const SMALLEST_COPY: usize = 4 << 10;
const LARGEST_COPY: usize = 16 << 20;
/// Of the square matrices: on a GPU, smaller ones would not fill it.
const WIDTH_CPU: usize = 1024;
const WIDTH_GPU: usize = 8192;

fn main() -> ExitCode {
    match run() {
        Ok(limits) => {
            println!("{limits}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<Value> {
    let bench = Bench::from_environment()?;
    let on_processor = bench.device().is_cpu();
    let memory = if on_processor { processor_memory()? } else { device_memory(&bench)? };
    let steps = |speeds: Vec<(usize, f64)>| -> Vec<Value> {
        let step = |(bytes, speed)| json!({ "bytes": bytes, "bytes_per_second": speed });
        speeds.into_iter().map(step).collect()
    };
    let (width, activations) = if on_processor { (WIDTH_CPU, DType::F32) } else { (WIDTH_GPU, DType::BF16) };
    Ok(json!({
        "device": if on_processor { "cpu" } else { "gpu" },
        "threads": device::threads(),
        "memory": steps(memory),
        "copies": steps(if on_processor { copies() } else { Vec::new() }),
        "seconds_per_lock": on_processor.then(lock),
        "flops_per_second": product(&bench, width, [DType::F32; 2])?,
        "model_flops_per_second": product(&bench, width, [activations, DType::BF16])?,
    }))
}

/// Working sets and bytes per second.
fn processor_memory() -> Result<Vec<(usize, f64)>> {
    let threads = device::threads();
    let mut memory: Vec<(usize, f64)> =
        doubled(SMALLEST, LARGEST_CACHED).map(|size| (size, best(|| compare(size, threads)))).collect();
    let probe = BandwidthProbe::new(MAIN_MEMORY)?;
    memory.push((MAIN_MEMORY, best(|| probe.sweep()).max(best(|| compare(MAIN_MEMORY, threads)))));
    Ok(memory)
}

/// Working sets and bytes per second, read and written, of one thread that copies the same bytes from its nearest cache to
/// one place after another.
fn copies() -> Vec<(usize, f64)> {
    let from = vec![1u8; COPIED];
    let speed = |size: usize| {
        let mut to = vec![0u8; size];
        best(|| {
            let (start, mut passes) = (Instant::now(), 0);
            while start.elapsed() < READING {
                // The clock is asked once for at least a MiB.
                for _ in 0..((1 << 20) / size).max(1) {
                    for place in to.chunks_exact_mut(COPIED) {
                        place.copy_from_slice(std::hint::black_box(&from));
                    }
                    passes += 1;
                }
            }
            (passes * 2 * size) as f64 / start.elapsed().as_secs_f64()
        })
    };
    doubled(SMALLEST_COPY, LARGEST_COPY).map(|size| (size, speed(size))).collect()
}

/// Seconds to take and give back one of the locks that candle's tensors have: to read one tensor, then to write another.
fn lock() -> f64 {
    let (from, to) = (RwLock::new(1u64), RwLock::new(0u64));
    let locks_per_second = best(|| {
        let (start, mut locks) = (Instant::now(), 0);
        while start.elapsed() < READING {
            for _ in 0..1000 {
                let value = *from.read().unwrap_or_else(PoisonError::into_inner);
                *to.write().unwrap_or_else(PoisonError::into_inner) += value;
            }
            locks += 2000;
        }
        f64::from(locks) / start.elapsed().as_secs_f64()
    });
    1. / locks_per_second
}

fn doubled(first: usize, last: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(first), |size| Some(2 * size)).take_while(move |size| *size <= last)
}

fn best(reading: impl FnMut() -> f64) -> f64 {
    std::iter::repeat_with(reading).take(TRIES).fold(0., f64::max)
}

/// Bytes per second that all threads read while each compares the two equal halves of its part, again and again: the
/// comparison of the C library uses the widest loads of the processor and does nothing else.
fn compare(bytes: usize, threads: usize) -> f64 {
    let start_together = Barrier::new(threads);
    let part = bytes / threads;
    let half = part / 2;
    let work = || {
        let data = vec![1u8; part];
        let (first, second) = data.split_at(half);
        let read =
            || std::hint::black_box(std::hint::black_box(first) == std::hint::black_box(&second[..half]));
        read();
        start_together.wait();
        let start = Instant::now();
        let mut passes = 0;
        while start.elapsed() < READING || passes == 0 {
            // The clock is asked once for at least a MiB.
            let together = ((1 << 20) / part).max(1);
            (0..together).for_each(|_| {
                read();
            });
            passes += together;
        }
        (passes * 2 * half) as f64 / start.elapsed().as_secs_f64()
    };
    thread::scope(|scope| {
        let readers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        readers.into_iter().map(|reader| reader.join().unwrap_or(0.)).sum()
    })
}

/// A device's memory at two sizes: what its caches may hold, and what they cannot. One read and one write of each byte.
fn device_memory(bench: &Bench) -> Result<Vec<(usize, f64)>> {
    let sizes = [4 << 20, 32 << 20, MAIN_MEMORY, 2 * MAIN_MEMORY];
    let speed = |bytes: usize| -> Result<(usize, f64)> {
        let tensor = Tensor::ones(bytes / 2 / DType::F32.size_in_bytes(), DType::F32, bench.device())?;
        let seconds = seconds(bench.device(), || tensor.copy().map(drop).map_err(Into::into))?;
        Ok((bytes, bytes as f64 / seconds))
    };
    sizes.into_iter().map(speed).collect()
}

/// Operations per second of a product of square matrices, activations and weights.
fn product(bench: &Bench, width: usize, dtypes: [DType; 2]) -> Result<f64> {
    let square = |dtype| -> Result<Tensor> { Ok(bench.random((width, width))?.to_dtype(dtype)?) };
    let (x, projection) = (square(dtypes[0])?, Projection { weight: square(dtypes[1])?, bias: None });
    let seconds = seconds(bench.device(), || linear(&x, &projection).map(drop).map_err(Into::into))?;
    Ok(2. * (width as f64).powi(3) / seconds)
}

/// The best time of `work`, repeated so often that starting it does not count.
fn seconds(device: &Device, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut least = f64::INFINITY;
    for _ in 0..=TRIES {
        let (start, mut times) = (Instant::now(), 0);
        while times == 0 || start.elapsed() < 4 * READING {
            for _ in 0..8 {
                work()?;
            }
            device.synchronize()?;
            times += 8;
        }
        least = least.min(start.elapsed().as_secs_f64() / f64::from(times));
    }
    Ok(least)
}
