//! Measures attention and the ops around it on the CPU: `cargo run --release --example attention_speed`.
//!
//! Prefill counts the operations that a causal mask leaves; decode counts the bytes of keys and values;
//! norm and rotation count what they read and write. Each line is a median. An argument limits the
//! measurement to the lines whose names contain it.
#![allow(clippy::print_stdout, missing_docs)]

use std::{hint::black_box, time::Instant};

use metal_candle_kernels::{
    DType, Device, Result, Tensor,
    attention::{AttentionParams, KvChunk, Segment, attention},
    pool,
    rms_norm::{RmsNorm, add_rms_norm, rms_norm},
    rope::{Pairs, Rotation, rope},
    simd,
};

/// Positions per chunk.
const CHUNK: usize = 128;

/// Query heads, key/value heads, head size.
#[derive(Clone, Copy)]
struct Heads(usize, usize, usize);

fn main() -> Result<()> {
    println!("{} threads, {}", pool::threads(), simd::level());
    let qwen = Heads(14, 2, 64);
    let llama = Heads(32, 8, 128);
    for (name, heads) in [("14/2 x 64", qwen), ("32/8 x 128", llama)] {
        for length in [32, 128, 512, 2048] {
            prefill(name, heads, length)?;
        }
        for length in [16, 128, 512, 4096] {
            decode(name, heads, &[length])?;
        }
    }
    let ragged: Vec<usize> = (1..=16).map(|index| index * 61).collect();
    decode("14/2 x 64", qwen, &ragged)?;
    decode("6/6 x 64", Heads(6, 6, 64), &[512])?;
    for rows in [1, 16, 512] {
        elementwise(rows)?;
    }
    Ok(())
}

/// Whether the command line asks for this line.
fn is_wanted(name: &str) -> bool {
    std::env::args().nth(1).is_none_or(|wanted| name.contains(&wanted))
}

fn prefill(name: &str, heads: Heads, length: usize) -> Result<()> {
    let name = format!("{name} prefill {length}");
    if !is_wanted(&name) {
        return Ok(());
    }
    let Heads(count, _, head_dim) = heads;
    let cache = cache(heads, length)?;
    let queries = Tensor::randn(0f32, 1., (length, count, head_dim), &Device::Cpu)?;
    let seconds = median(|_| {
        let segment = Segment { rows: 0..length, start: 0, end: length, chunks: cache.iter().collect() };
        attention(&queries, &[segment], params(head_dim))
    })?;
    let operations = 4 * head_dim * count * length * (length + 1) / 2;
    println!("{name}: {:.1} us, {:.1} GFLOP/s", seconds * 1e6, operations as f64 / seconds / 1e9);
    Ok(())
}

/// One row for each of several sequences; the caches of many layers take turns, as in a model.
fn decode(name: &str, heads: Heads, lengths: &[usize]) -> Result<()> {
    let (sequences, total) = (lengths.len(), lengths.iter().sum::<usize>());
    let name = format!("{name} decode {sequences} x {}", total / sequences);
    if !is_wanted(&name) {
        return Ok(());
    }
    let Heads(count, groups, head_dim) = heads;
    let layers: Vec<Vec<_>> = (0..24)
        .map(|_| lengths.iter().map(|length| cache(heads, *length)).collect::<Result<_>>())
        .collect::<Result<_>>()?;
    let queries = Tensor::randn(0f32, 1., (lengths.len(), count, head_dim), &Device::Cpu)?;
    let seconds = median(|round| {
        let sequences = layers[round % layers.len()].iter().zip(lengths).enumerate();
        let segments: Vec<_> = sequences
            .map(|(row, (cache, length))| Segment {
                rows: row..row + 1,
                start: 0,
                end: *length,
                chunks: cache.iter().collect(),
            })
            .collect();
        attention(&queries, &segments, params(head_dim))
    })?;
    let bytes = 2 * 4 * total * groups * head_dim;
    println!("{name}: {:.1} us, {:.1} GB/s", seconds * 1e6, bytes as f64 / seconds / 1e9);
    println!("{name}: {:.1} us, {:.1} GB/s", seconds * 1e6, bytes as f64 / seconds / 1e9);
    Ok(())
}

fn elementwise(rows: usize) -> Result<()> {
    let (width, heads, head_dim) = (896, 14, 64);
    let random = |shape: &[usize]| Tensor::randn(0f32, 1., shape, &Device::Cpu);
    let weight = random(&[width])?.to_dtype(DType::BF16)?;
    let norm = RmsNorm { weight, epsilon: 1e-6, weight_offset: 0. };
    let (x, delta) = (random(&[rows, width])?, random(&[rows, width])?);
    let rotation = Rotation {
        cos: random(&[rows, head_dim / 2])?,
        sin: random(&[rows, head_dim / 2])?,
        pairs: Pairs::Halves,
    };
    let turned = x.reshape((rows, heads, head_dim))?;
    throughput("rms_norm", &x, 2, |_| rms_norm(&x, &norm))?;
    throughput("add_rms_norm", &x, 4, |_| add_rms_norm(&x, &delta, 1., &norm))?;
    throughput("rope", &x, 2, |_| rope(&turned, &rotation))
}

/// `passes`: how many tensors like `x` are read or written.
fn throughput<T>(name: &str, x: &Tensor, passes: usize, call: impl FnMut(usize) -> Result<T>) -> Result<()> {
    let name = format!("{name} {:?}", x.dims());
    if is_wanted(&name) {
        let seconds = median(call)?;
        let rate = (passes * 4 * x.elem_count()) as f64 / seconds / 1e9;
        println!("{name}: {:.2} us, {rate:.1} GB/s", seconds * 1e6);
    }
    Ok(())
}

fn params(head_dim: usize) -> AttentionParams {
    AttentionParams { scale: 1. / (head_dim as f32).sqrt(), soft_cap: None, window: None }
}

fn cache(Heads(_, groups, head_dim): Heads, length: usize) -> Result<Vec<KvChunk>> {
    let random = || Tensor::randn(0f32, 1., (CHUNK, groups, head_dim), &Device::Cpu);
    (0..length.div_ceil(CHUNK)).map(|_| Ok(KvChunk { keys: random()?, values: random()? })).collect()
}

/// The median time of a call, over half a second of calls.
fn median<T>(mut call: impl FnMut(usize) -> Result<T>) -> Result<f64> {
    let begin = Instant::now();
    let mut times = Vec::new();
    for round in 0.. {
        let start = Instant::now();
        black_box(call(round)?);
        times.push(start.elapsed().as_secs_f64());
        if begin.elapsed().as_secs_f64() > 0.5 && round > 50 {
            break;
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}
