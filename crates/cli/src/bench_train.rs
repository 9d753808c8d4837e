//! `metal-candle bench --train`: the speed and the memory of a LoRA training step.

use std::{sync::Arc, time::Instant};

use anyhow::{Result, bail};
use clap::Args;
use metal_candle::{
    device,
    lora::{Adapter, LoraConfig, Scaling},
    model::{Model, Rows},
    trace,
    train::{
        Forecast, Recompute, RecomputeChoice, Trainer, TrainerOptions, Update, Workload, data::best_fit,
    },
};
use serde_json::{Value, json};

use crate::{
    bench::{Spread, launch_name, positive},
    console::Console,
    generate::{dtype_name, peak_megabytes},
    train::{Bytes, RecomputeName},
};

/// What `--train` measures.
#[derive(Debug, Args)]
pub(crate) struct TrainBenchArgs {
    /// Measure training steps of a LoRA adapter instead: forward, loss, backward, AdamW
    #[arg(long)]
    pub(crate) train: bool,

    /// Tokens of each sequence
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = positive, requires = "train")]
    seq: usize,

    /// Sequences of a step
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive, requires = "train")]
    batch: usize,

    /// Rank of the adapter; its alpha is twice that
    #[arg(long, value_name = "R", default_value_t = 8, value_parser = positive, requires = "train")]
    rank: usize,

    /// Modules that get an adapter
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "q_proj,v_proj",
        requires = "train"
    )]
    targets: Vec<String>,

    /// Blocks that are computed again in the backward pass: auto, none, all, a number, or mlps:NUMBER for their MLPs only
    #[arg(long, value_name = "BLOCKS", default_value = "none", requires = "train")]
    recompute: RecomputeName,

    /// Recompute as little as this much memory allows, such as 6GB, by the forecast
    #[arg(long, value_name = "BYTES", conflicts_with = "recompute", requires = "train")]
    memory_budget: Option<Bytes>,

    /// Instead of --batch whole sequences: this many of unequal lengths up to --seq, as chats have them; padded to the longest of each
    /// batch, and packed without padding
    #[arg(long, value_name = "N", value_parser = positive, requires = "train")]
    mix: Option<usize>,

    /// The most tokens whose logits a GPU holds at once
    #[arg(long, value_name = "N", value_parser = positive, requires = "train")]
    chunk_tokens: Option<usize>,
}

/// Steps before the first one that counts.
const WARM_UP_STEPS: u32 = 2;

pub(crate) fn run(
    args: &TrainBenchArgs,
    name: &str,
    model: Model,
    repetitions: usize,
    as_json: bool,
    console: &Console,
) -> Result<()> {
    let limit = model.spec().max_positions;
    if args.seq > limit {
        bail!("{} positions exceed the model's context of {limit}; use a smaller --seq", args.seq);
    }
    let model = Arc::new(model);
    let config = LoraConfig {
        rank: args.rank,
        scaling: Scaling::Alpha(2.0 * args.rank as f32),
        targets: args.targets.clone(),
        ..LoraConfig::default()
    };
    let adapter = Adapter::initial(&config, &model, 1)?;
    let trainable = adapter.parameters();
    let rows = (args.seq * args.batch) as u64;
    let load = Workload::new(&model, Some(&config), rows, rows);
    let choice = match args.memory_budget {
        Some(Bytes(bytes)) => RecomputeChoice::Within(bytes),
        None => args.recompute.into(),
    };
    let recompute = choice.resolve(&load, model.device()).within(model.spec().layers.len());
    let forecast = Forecast::new(&Workload { recompute, ..load });
    let options = TrainerOptions { recompute, chunk_tokens: args.chunk_tokens, ..TrainerOptions::default() };
    let mut trainer = Trainer::lora(Arc::clone(&model), &adapter, options)?;
    let vocabulary = model.spec().vocab_size as u64;
    if let Some(count) = args.mix {
        let found = mix(args, &mut trainer, count, vocabulary, console)?;
        return if as_json { console.print_json(&found.json()) } else { console.print(&found.text()) };
    }
    let batch = Batch::random(args, vocabulary);
    let bar = console.count_bar("training", u64::from(WARM_UP_STEPS) + repetitions as u64);
    let mut seconds = Vec::with_capacity(repetitions);
    let mut losses = Vec::with_capacity(repetitions);
    let mut launched = 0;
    for number in 1..=WARM_UP_STEPS + repetitions as u32 {
        let before = trace::launches();
        let start = Instant::now();
        let loss = trainer.accumulate(&batch.rows(), u64::from(number))?;
        let update = Update { number, learning_rate: 1e-4, targets: loss.targets };
        let updated = trainer.update(&update)?;
        if !updated.gradient_norm.is_finite() {
            bail!("the gradient of step {number} is not finite");
        }
        if number > WARM_UP_STEPS {
            seconds.push(start.elapsed().as_secs_f64());
            losses.push(loss.sum / loss.targets as f64);
            launched += trace::launches() - before;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let peak = peak_megabytes();
    let launches = launched as f64 / repetitions as f64;
    let found =
        Found { args, name, model: &model, trainable, seconds, losses, launches, peak, recompute, forecast };
    if as_json { console.print_json(&found.json()?) } else { console.print(&found.text()?) }
}

/// Random tokens, the same every time; each predicts the next of its sequence.
struct Batch {
    tokens: Vec<u32>,
    targets: Vec<u32>,
    starts: Vec<u32>,
}

impl Batch {
    fn random(args: &TrainBenchArgs, vocabulary: u64) -> Self {
        Self::of(&vec![args.seq; args.batch], vocabulary)
    }

    fn of(lengths: &[usize], vocabulary: u64) -> Self {
        let count = lengths.iter().sum::<usize>() as u64;
        let token = |index: u64| ((index.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) % vocabulary) as u32;
        Self {
            tokens: (0..count).map(token).collect(),
            targets: (1..=count).map(token).collect(),
            starts: (0..=lengths.len()).map(|end| lengths[..end].iter().sum::<usize>() as u32).collect(),
        }
    }

    fn rows(&self) -> Rows<'_> {
        Rows { tokens: &self.tokens, targets: &self.targets, starts: &self.starts }
    }
}

/// Useful tokens per second of the same sequences, batched in two ways.
struct Mix {
    tokens: usize,
    padded: f64,
    packed: f64,
}

impl Mix {
    fn json(&self) -> Value {
        json!({ "mix": {
            "useful_tokens": self.tokens, "padded_tok_s": self.padded, "packed_tok_s": self.packed,
            "ratio": self.packed / self.padded,
        } })
    }

    fn text(&self) -> String {
        format!(
            "{} useful tokens: padded {:.1} tok/s, packed {:.1} tok/s, {:.2} times as many\n",
            self.tokens,
            self.padded,
            self.packed,
            self.packed / self.padded
        )
    }
}

/// Steps on every batch of a mix of lengths, padded and packed in turns.
fn mix(
    args: &TrainBenchArgs,
    trainer: &mut Trainer,
    count: usize,
    vocabulary: u64,
    console: &Console,
) -> Result<Mix> {
    let lengths = lengths(count, args.seq);
    let longest = |batch: &[usize]| vec![batch.iter().copied().max().unwrap_or(0); batch.len()];
    let padded: Vec<Vec<usize>> = lengths.chunks(args.batch).map(longest).collect();
    let bins = best_fit(&lengths, args.seq * args.batch).into_iter();
    let packed: Vec<Vec<usize>> =
        bins.map(|bin| bin.into_iter().map(|index| lengths[index]).collect()).collect();
    let bar = console.count_bar("training", (padded.len() + packed.len()) as u64);
    let mut seconds = [0.0; 2];
    let mut number = 0;
    let mut step = |rows: &[usize]| -> Result<f64> {
        number += 1;
        let batch = Batch::of(rows, vocabulary);
        let start = Instant::now();
        let loss = trainer.accumulate(&batch.rows(), u64::from(number))?;
        trainer.update(&Update { number, learning_rate: 1e-4, targets: loss.targets })?;
        bar.inc(1);
        Ok(start.elapsed().as_secs_f64())
    };
    step(&padded[0])?;
    for index in 0..padded.len().max(packed.len()) {
        for (batches, seconds) in [&padded, &packed].into_iter().zip(&mut seconds) {
            *seconds += batches.get(index).map_or(Ok(0.0), |rows| step(rows))?;
        }
    }
    bar.finish_and_clear();
    let tokens: usize = lengths.iter().sum();
    let [padded, packed] = seconds.map(|seconds| tokens as f64 / seconds);
    Ok(Mix { tokens, padded, packed })
}

/// Lengths whose logarithm is normal: many short ones, few long ones. The same every time.
fn lengths(count: usize, longest: usize) -> Vec<usize> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    let mut length = || {
        let normal: f64 = (0..12).map(|_| uniform()).sum::<f64>() - 6.0;
        // Half of them are shorter than a fifth of the longest.
        let length = (longest as f64 / 5.0) * (0.9 * normal).exp();
        (length as usize).clamp(8.min(longest), longest)
    };
    (0..count).map(|_| length()).collect()
}

struct Found<'a> {
    args: &'a TrainBenchArgs,
    name: &'a str,
    model: &'a Model,
    trainable: u64,
    seconds: Vec<f64>,
    losses: Vec<f64>,
    /// Of a step.
    launches: f64,
    peak: Option<f64>,
    recompute: Recompute,
    forecast: Forecast,
}

impl Found<'_> {
    fn tokens(&self) -> f64 {
        (self.args.seq * self.args.batch) as f64
    }

    fn json(&self) -> Result<Value> {
        let Spread { median, min, max } = Spread::of(&self.seconds);
        Ok(json!({
            "model": self.name,
            "dtype": dtype_name(self.model.dtype()),
            "device": device::kind(self.model.device()),
            "threads": device::threads(),
            "simd": device::simd_level().name(),
            "train": {
                "tok_s": self.tokens() / median, "ms": 1e3 * median, "min_ms": 1e3 * min, "max_ms": 1e3 * max,
                "seq": self.args.seq, "batch": self.args.batch, "rank": self.args.rank,
                "targets": self.args.targets, "trainable": self.trainable, "launches_per_step": self.launches,
                "recomputed": self.recompute, "first_loss": self.losses.first(), "last_loss": self.losses.last(),
            },
            "repetitions": self.seconds.len(),
            "forecast_mb": self.forecast.total() as f64 / 1e6,
            "peak_rss_mb": self.peak,
            "device_memory_mb": device::memory(self.model.device())?.map(|memory| memory.peak as f64 / 1e6),
        }))
    }

    fn text(&self) -> Result<String> {
        let Spread { median, min, max } = Spread::of(&self.seconds);
        let mut text = format!(
            "{}, {}, {}, {} threads, {}\n\nLoRA step, {} x {} tokens, rank {} on {} ({} trained)\n\
             {:.1} tok/s   {:.1} ms ({:.1} to {:.1})   loss {:.4} to {:.4}\n",
            self.name,
            dtype_name(self.model.dtype()),
            device::kind(self.model.device()),
            device::threads(),
            device::simd_level(),
            self.args.batch,
            self.args.seq,
            self.args.rank,
            self.args.targets.join(", "),
            self.trainable,
            self.tokens() / median,
            1e3 * median,
            1e3 * min,
            1e3 * max,
            self.losses.first().copied().unwrap_or(f64::NAN),
            self.losses.last().copied().unwrap_or(f64::NAN),
        );
        text += &format!("{:.0} {} per step\n", self.launches, launch_name(self.model.device()));
        if let Some(peak) = self.peak {
            text += &format!("peak memory {peak:.0} MB");
        }
        if let Some(memory) = device::memory(self.model.device())? {
            text += &format!(", on the device {:.0} MB", memory.peak as f64 / 1e6);
        }
        text += &format!(", forecast {:.0} MB\n", self.forecast.total() as f64 / 1e6);
        Ok(text)
    }
}
