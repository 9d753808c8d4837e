//! Prints how near the memory-bound ops come to a GPU's memory bandwidth, beside a plain copy on the device; and
//! what attention, the head's loss and adapters cost, beside matrix products of the same sizes.
//!
//! `cargo run --release -p metal-candle-kernels --features cuda --example gpu_speed -- cuda:0 [MEGABYTES..]`
//! (0 megabytes: only the parts of a training step)
//!
//! Counted is what an op must move: each input and each result once. Inputs rotate over several sets and results
//! stay alive for as long, so that caches do not hold them from one launch to the next. Each line is the median
//! over batches of launches between two synchronisations.
#![allow(clippy::print_stdout, missing_docs)]

mod compute;
mod step;

use std::{collections::VecDeque, time::Instant};

use candle_core::{DType, Device, Result, Tensor, bail};
use metal_candle_kernels::{
    cast::cast,
    cuda_libraries, device_memory,
    gated::{Activation, gated, gated_backward},
    layer_norm::{LayerNorm, layer_norm, layer_norm_backward},
    optimizer::{self, Rule, Step},
    rms_norm::{RmsNorm, add_rms_norm, rms_norm, rms_norm_backward},
    rope::{Pairs, Rotation, rope, rope_backward},
    softmax::{Mask, softmax, softmax_backward},
};

/// Megabytes of an op's main input: one that a cache of 50 MB could hold, and two that it could not.
const MEGABYTES: [usize; 3] = [29, 64, 256];
/// Elements of a row, and heads of it: those of qwen2.5-0.5b.
const WIDTH: usize = 896;
const HEADS: usize = 14;
/// Parameters of an optimizer step.
const PARAMETERS: usize = 10_000_000;
/// The sets together are larger than any cache.
const ALL_SETS: usize = 600_000_000;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let device = device(&arguments.next().unwrap_or_default())?;
    let sizes: Vec<usize> =
        arguments.map(|size| size.parse().map_err(candle_core::Error::wrap)).collect::<Result<_>>()?;
    let sizes = if sizes.is_empty() { MEGABYTES.to_vec() } else { sizes };
    device_memory::prepare(&device)?;
    if let [0] = sizes[..] {
        return step::print(&device);
    }
    compute::print(&device)?;
    let mut table = Table::default();
    for megabytes in sizes {
        for dtype in [DType::BF16, DType::F32] {
            let rows = megabytes * 1_000_000 / (WIDTH * dtype.size_in_bytes());
            let bench = Bench { device: &device, dtype, megabytes, rows };
            bench.norms(&mut table)?;
            bench.elementwise(&mut table)?;
            bench.softmax(&mut table)?;
        }
    }
    optimizer_step(&device, &mut table)?;
    table.print();
    Ok(())
}

fn device(name: &str) -> Result<Device> {
    let (family, index) = name.split_once(':').unwrap_or((name, "0"));
    let index = index.parse().map_err(candle_core::Error::wrap)?;
    match family {
        "cuda" if !cuda_libraries::missing().is_empty() => {
            bail!("{name}: this machine lacks {}", cuda_libraries::missing().join(", "))
        }
        "cuda" if cfg!(feature = "cuda") => Device::new_cuda(index),
        "metal" if cfg!(feature = "metal") => Device::new_metal(index),
        "cuda" | "metal" => {
            bail!("this example was built without `{family}`: build it with --features {family}")
        }
        "cpu" => Ok(Device::Cpu),
        _ => bail!("usage: gpu_speed cuda:0|metal:0 [MEGABYTES..]; built with --features cuda or metal"),
    }
}

/// The ops of one element type and size.
struct Bench<'a> {
    device: &'a Device,
    dtype: DType,
    megabytes: usize,
    rows: usize,
}

impl Bench<'_> {
    fn norms(&self, table: &mut Table) -> Result<()> {
        let weight = self.tensor(1, 0)?.flatten_all()?;
        let norm = RmsNorm { weight: weight.clone(), epsilon: 1e-6, weight_offset: 0. };
        let [x, other] = [self.sets(1)?, self.sets(2)?];
        let size = self.size();
        self.time(table, "rms_norm", "forward", 2 * size, |set| keep(rms_norm(&x[set], &norm)))?;
        self.time(table, "rms_norm", "backward", 3 * size, |set| {
            keep(rms_norm_backward(&x[set], &norm, &other[set], None))
        })?;
        self.time(table, "add_rms_norm", "forward", 4 * size, |set| {
            keep_two(add_rms_norm(&x[set], &other[set], 1., &norm))
        })?;
        let norm = LayerNorm { bias: Some(weight.clone()), weight, epsilon: 1e-5 };
        self.time(table, "layer_norm", "forward", 2 * size, |set| keep(layer_norm(&x[set], &norm)))?;
        self.time(table, "layer_norm", "backward", 3 * size, |set| {
            keep(layer_norm_backward(&x[set], &norm, &other[set]))
        })
    }

    fn elementwise(&self, table: &mut Table) -> Result<()> {
        let [x, up, dy] = [self.sets(1)?, self.sets(2)?, self.sets(3)?];
        let size = self.size();
        self.time(table, "copy", "forward", 2 * size, |set| keep(x[set].copy()))?;
        self.time(table, "gated", "forward", 3 * size, |set| {
            keep(gated(&x[set], &up[set], Activation::Silu))
        })?;
        self.time(table, "gated", "backward", 5 * size, |set| {
            keep_two(gated_backward(&x[set], &up[set], &dy[set], Activation::Silu))
        })?;
        let target = if self.dtype == DType::F32 { DType::BF16 } else { DType::F32 };
        let both = size + size / self.dtype.size_in_bytes() * target.size_in_bytes();
        self.time(table, "cast", "forward", both, |set| keep(cast(&x[set], target, 0.5)))?;
        self.rope(table, &x)
    }

    fn rope(&self, table: &mut Table, x: &[Tensor]) -> Result<()> {
        let half = WIDTH / HEADS / 2;
        let heads = |x: &Tensor| x.reshape((self.rows, HEADS, WIDTH / HEADS));
        let x: Vec<Tensor> = x.iter().map(heads).collect::<Result<_>>()?;
        let turn = Tensor::randn(0f32, 1f32, (1, half), &Device::Cpu)?.to_device(self.device)?;
        let turn = turn.broadcast_as((self.rows, half))?.contiguous()?;
        let bytes = 2 * self.size() + 2 * 4 * self.rows * half;
        for pairs in [Pairs::Halves, Pairs::Neighbours] {
            let rotation = Rotation { cos: turn.clone(), sin: turn.clone(), pairs };
            let name = if pairs == Pairs::Halves { "rope" } else { "rope neighbours" };
            self.time(table, name, "forward", bytes, |set| keep(rope(&x[set], &rotation)))?;
            self.time(table, name, "backward", bytes, |set| keep(rope_backward(&x[set], &rotation)))?;
        }
        Ok(())
    }

    fn softmax(&self, table: &mut Table) -> Result<()> {
        let [x, dy] = [self.sets(1)?, self.sets(2)?];
        let size = self.size();
        self.time(table, "softmax", "forward", 2 * size, |set| keep(softmax(&x[set], Mask::None)))?;
        self.time(table, "softmax", "backward", 3 * size, |set| keep(softmax_backward(&x[set], &dy[set])))
    }

    /// Bytes of the main input.
    fn size(&self) -> usize {
        self.rows * WIDTH * self.dtype.size_in_bytes()
    }

    /// Tensors of the main input's shape, one per set.
    fn sets(&self, seed: usize) -> Result<Vec<Tensor>> {
        let count = ALL_SETS.div_ceil(self.size()).clamp(3, 24);
        (0..count).map(|set| self.tensor(self.rows, seed + set)).collect()
    }

    /// Random rows, repeated: their making takes no longer for a larger tensor.
    fn tensor(&self, rows: usize, seed: usize) -> Result<Tensor> {
        let distinct = rows.min(256);
        let block =
            (Tensor::randn(0f32, 1f32, (1, distinct, WIDTH), &Device::Cpu)? * (1. + seed as f64 * 0.01))?;
        let block = block.to_dtype(self.dtype)?.to_device(self.device)?;
        let times = rows.div_ceil(distinct);
        let all = block.broadcast_as((times, distinct, WIDTH))?.contiguous()?;
        all.reshape((times * distinct, WIDTH))?.narrow(0, 0, rows)?.copy()
    }

    fn time(
        &self,
        table: &mut Table,
        op: &'static str,
        pass: &'static str,
        bytes: usize,
        run: impl Fn(usize) -> Result<Vec<Tensor>>,
    ) -> Result<()> {
        let sets = ALL_SETS.div_ceil(self.size()).clamp(3, 24);
        let seconds = median_seconds(self.device, sets, bytes, run)?;
        table.add(Line { op, pass, dtype: self.dtype, megabytes: self.megabytes, bytes, seconds });
        Ok(())
    }
}

fn optimizer_step(device: &Device, table: &mut Table) -> Result<()> {
    let rule = Rule::AdamW { betas: [0.9, 0.999], epsilon: 1e-8 };
    let step = Step { rule, number: 10, learning_rate: 1e-4, weight_decay: 0.01, clip: None };
    let sets = 4;
    let states: Vec<Tensor> =
        (0..sets).map(|_| Tensor::zeros((3, PARAMETERS), DType::F32, device)).collect::<Result<_>>()?;
    let gradients: Vec<Tensor> =
        (0..sets).map(|_| Tensor::ones(PARAMETERS, DType::F32, device)).collect::<Result<_>>()?;
    // Three rows of the state are read and written, and the gradient is read.
    let bytes = 7 * 4 * PARAMETERS;
    let seconds = median_seconds(device, sets, bytes, |set| {
        optimizer::update(&states[set], &gradients[set], 0..PARAMETERS, &step)?;
        Ok(Vec::new())
    })?;
    let megabytes = 4 * PARAMETERS / 1_000_000;
    table.add(Line { op: "adamw", pass: "forward", dtype: DType::F32, megabytes, bytes, seconds });
    Ok(())
}

/// The time of a launch.
fn median_seconds(
    device: &Device,
    sets: usize,
    bytes: usize,
    run: impl Fn(usize) -> Result<Vec<Tensor>>,
) -> Result<f64> {
    const BATCHES: usize = 7;
    // So many launches that the synchronisation's own time does not count.
    let launches = if device.is_cpu() { 1 } else { (40_000_000_000 / bytes).clamp(50, 1000) };
    let mut alive = VecDeque::new();
    let mut set = 0;
    let mut batch = |launches: usize| -> Result<f64> {
        let start = Instant::now();
        for _ in 0..launches {
            alive.push_back(run(set)?);
            set = (set + 1) % sets;
            if alive.len() > sets {
                alive.pop_front();
            }
        }
        device.synchronize()?;
        Ok(start.elapsed().as_secs_f64() / launches as f64)
    };
    batch(2 * sets)?;
    let mut times = (0..BATCHES).map(|_| batch(launches)).collect::<Result<Vec<f64>>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times[BATCHES / 2])
}

fn keep(result: Result<Tensor>) -> Result<Vec<Tensor>> {
    Ok(vec![result?])
}

fn keep_two(results: Result<(Tensor, Tensor)>) -> Result<Vec<Tensor>> {
    let (first, second) = results?;
    Ok(vec![first, second])
}

/// One measurement.
struct Line {
    op: &'static str,
    pass: &'static str,
    dtype: DType,
    megabytes: usize,
    bytes: usize,
    seconds: f64,
}

impl Line {
    /// Terabytes per second.
    fn speed(&self) -> f64 {
        self.bytes as f64 / self.seconds * 1e-12
    }
}

/// All measurements: each is printed as JSON at once, and all as a table at the end.
#[derive(Default)]
struct Table(Vec<Line>);

impl Table {
    fn add(&mut self, line: Line) {
        let Line { op, pass, megabytes, seconds, .. } = line;
        let (dtype, microseconds, speed) = (line.dtype.as_str(), seconds * 1e6, line.speed());
        println!(
            r#"{{"op":"{op}","pass":"{pass}","dtype":"{dtype}","mb":{megabytes},"us":{microseconds:.2},"tb_s":{speed:.3}}}"#
        );
        self.0.push(line);
    }

    fn print(&self) {
        println!("\n{:<16} {:<9} {:<5} {:>5} {:>9} {:>6}", "op", "pass", "dtype", "MB", "us", "TB/s");
        for line in &self.0 {
            let Line { op, pass, megabytes, seconds, .. } = line;
            let (dtype, microseconds, speed) = (line.dtype.as_str(), seconds * 1e6, line.speed());
            println!("{op:<16} {pass:<9} {dtype:<5} {megabytes:>5} {microseconds:>9.2} {speed:>6.3}");
        }
    }
}
