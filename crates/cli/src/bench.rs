//! `metal-candle bench`: the speed of prefill and decode.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::{ArgGroup, Args, builder::PossibleValuesParser};
use metal_candle::{
    cache::KvCache,
    device::{self, BandwidthProbe, DType, Device},
    generate::sampler::{Sampler, SamplingParams},
    model::{LogitsFor, Model, SequenceInput, spec::DecoderSpec, weights::Weights},
    trace,
};
use serde_json::{Value, json};

use crate::{
    args::{ComputeArgs, SourceArgs},
    bench_train::{self, TrainBenchArgs},
    console::{Console, human_bytes},
    generate::{dtype_name, peak_megabytes},
    model, shapes,
};

pub(crate) const EXAMPLES: &str = "\
Prefill runs a prompt of random tokens, in pieces of 512 as the engine does, and ends with the
logits of its last token. Decode runs one token at a time: forward pass, logits, greedy choice.
Neither includes the tokenizer. Each is repeated after a warm-up; the median counts, the slowest
and fastest run stand beside it.

Examples:
  metal-candle bench --shape qwen2.5-0.5b                random weights, nothing to download
  metal-candle bench --shape llama-3.2-1b --dtype bf16 --threads 4 --json
  metal-candle bench -m ./model --prompt 1024 --tokens 64 --context 4096
  metal-candle bench --shape qwen2.5-0.5b --train --seq 512 --batch 1     a LoRA step instead
  metal-candle bench --shape qwen2.5-0.5b --bandwidth    the share of the memory's speed reached";

/// Rows of one forward pass; longer prompts take several.
const PIECE: usize = 512;
/// Decode steps before the first one that counts.
const WARM_UP_TOKENS: usize = 4;

/// Much more than any cache.
const BANDWIDTH_BYTES: usize = 512 << 20;
/// Readings of the memory's speed after each decode.
const SWEEPS: usize = 8;

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("subject").required(true).args(["model", "shape"])))]
pub(crate) struct BenchArgs {
    /// A model folder, or a name on the Hugging Face hub
    #[arg(long, short, value_name = "FOLDER|ORG/NAME[@REVISION]")]
    model: Option<String>,

    /// The shape of a well-known model, filled with random weights (bf16 unless --dtype says otherwise)
    #[arg(long, value_name = "SHAPE", value_parser = PossibleValuesParser::new(shapes::NAMES))]
    shape: Option<String>,

    /// Use only files that are already here; never ask the hub
    #[arg(long)]
    offline: bool,

    /// Tokens of the prompt in the prefill
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = positive)]
    prompt: usize,

    /// Tokens to decode
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = positive)]
    tokens: usize,

    /// Decode after this many tokens of context
    #[arg(long, value_name = "N", default_value_t = 0)]
    context: usize,

    /// How often each measurement is repeated
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = positive)]
    repetitions: usize,

    /// Also measure how fast this machine reads memory (takes half a GiB)
    #[arg(long)]
    bandwidth: bool,

    #[command(flatten)]
    train: TrainBenchArgs,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    compute: ComputeArgs,
}

pub(crate) fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&number| number > 0).ok_or_else(|| "use a whole number, 1 or more".to_owned())
}

pub(crate) fn run(args: &BenchArgs, console: &Console) -> Result<()> {
    let device = model::open_device(&args.compute, console)?;
    let (model, load) = subject(args, device, console)?;
    if args.train.train {
        let name = args.shape.as_deref().or(args.model.as_deref()).unwrap_or_default();
        return bench_train::run(&args.train, name, model, args.repetitions, args.json, console);
    }
    let longest = args.prompt.max(args.context + args.tokens.max(WARM_UP_TOKENS) + 1);
    if longest > model.spec().max_positions {
        bail!(
            "{longest} positions exceed the model's context of {}; use a smaller --prompt, --context or --tokens",
            model.spec().max_positions
        );
    }
    let runs = measure(&model, args, console)?;
    let report = Report { args, model: &model, load, runs };
    if args.json { console.print_json(&report.json()) } else { console.print(&report.table()) }
}

/// The model to measure, and how long it took to load or make.
fn subject(args: &BenchArgs, device: Device, console: &Console) -> Result<(Model, Duration)> {
    let Some(shape) = &args.shape else {
        let name = args.model.clone().unwrap_or_default();
        let source = SourceArgs { model: name, offline: args.offline };
        return model::load_decoder(&source, &args.compute, device, console);
    };
    let spec = shapes::spec(shape)?;
    let dtype = args.compute.dtype.explicit().unwrap_or(DType::BF16);
    let bytes = spec.parameters() * dtype.size_in_bytes() as u64;
    if device.is_cpu()
        && let Some(available) = device::available_bytes()
        && bytes > available
    {
        bail!(
            "{shape} in {} needs {} for its weights and {} are free; use a smaller shape or dtype",
            dtype_name(dtype),
            human_bytes(bytes),
            human_bytes(available)
        );
    }
    console.note(format_args!("making {} of random weights", human_bytes(bytes)));
    let start = Instant::now();
    let weights = Weights::random(&spec.tensors(), dtype, &device, 1)?;
    Ok((Model::new(spec, weights, &device)?, start.elapsed()))
}

/// Tokens per second of each repetition.
struct Runs {
    prefill: Vec<f64>,
    decode: Vec<f64>,
    /// Bytes per second.
    bandwidth: Vec<f64>,
    peak: Option<f64>,
    /// Kernels, or on the CPU calls of ops, for each decoded token.
    launches: f64,
}

fn measure(model: &Model, args: &BenchArgs, console: &Console) -> Result<Runs> {
    let bar = console.count_bar("measuring", 2 * (args.repetitions as u64 + 1));
    let mut bench = Bench::new(model, args.context)?;
    let (prefill, decode, bandwidth) = (Vec::new(), Vec::new(), Vec::new());
    let mut runs = Runs { prefill, decode, bandwidth, peak: None, launches: 0.0 };
    bench.prefill(args.prompt)?;
    bar.inc(1);
    bench.decode(args.tokens.min(WARM_UP_TOKENS))?;
    bar.inc(1);
    for _ in 0..args.repetitions {
        runs.prefill.push(bench.prefill(args.prompt)?);
        bar.inc(1);
    }
    // Before the probe, whose memory is not the model's.
    runs.peak = peak_megabytes();
    let probe = args.bandwidth.then(|| BandwidthProbe::new(BANDWIDTH_BYTES)).transpose()?;
    let launched = trace::launches();
    for _ in 0..args.repetitions {
        runs.decode.push(bench.decode(args.tokens)?);
        // Right after each decode: what the memory gives changes from second to second on a shared machine.
        runs.bandwidth.extend(probe.iter().flat_map(|probe| (0..SWEEPS).map(|_| probe.sweep())));
        bar.inc(1);
    }
    runs.launches = (trace::launches() - launched) as f64 / (args.repetitions * args.tokens) as f64;
    bar.finish_and_clear();
    Ok(runs)
}

struct Bench<'a> {
    model: &'a Model,
    /// Holds the context that decode starts from.
    context: KvCache,
    sampler: Sampler,
}

impl<'a> Bench<'a> {
    fn new(model: &'a Model, context: usize) -> Result<Self> {
        let sampler = Sampler::new(SamplingParams::default(), model.spec().vocab_size)?;
        let mut bench = Self { model, context: model.new_cache(), sampler };
        if context > 0 {
            bench.context.expect(context);
            let mut cache = bench.context.fork();
            bench.run(&bench.tokens(context), &mut cache)?;
            bench.context = cache;
        }
        Ok(bench)
    }

    /// Random tokens, the same every time.
    fn tokens(&self, count: usize) -> Vec<u32> {
        let vocabulary = self.model.spec().vocab_size as u64;
        (0..count as u64)
            .map(|index| (index.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) % vocabulary)
            .map(|token| token as u32)
            .collect()
    }

    /// Runs a prompt; returns tokens per second.
    fn prefill(&mut self, count: usize) -> Result<f64> {
        let tokens = self.tokens(count);
        let start = Instant::now();
        let mut cache = self.model.new_cache();
        cache.expect(count);
        self.run(&tokens, &mut cache)?;
        Ok(count as f64 / start.elapsed().as_secs_f64())
    }

    /// Decodes after the context; returns tokens per second.
    fn decode(&mut self, count: usize) -> Result<f64> {
        let mut token = self.tokens(1)[0];
        let history = self.sampler.history(&[token]);
        let mut cache = self.context.fork();
        let start = Instant::now();
        for _ in 0..count {
            let mut logits = self.run(&[token], &mut cache)?;
            token = self.sampler.sample(&mut logits, &history)?.id;
        }
        Ok(count as f64 / start.elapsed().as_secs_f64())
    }

    /// Runs tokens in pieces; returns the logits of the last one.
    fn run(&self, tokens: &[u32], cache: &mut KvCache) -> Result<Vec<f32>> {
        let last = (tokens.len() - 1) / PIECE;
        let mut logits = Vec::new();
        for (index, tokens) in tokens.chunks(PIECE).enumerate() {
            let wanted = if index == last { LogitsFor::Last } else { LogitsFor::None };
            let input = SequenceInput { tokens, cache, logits: wanted, adapter: None };
            let made = self.model.forward(&mut [input])?;
            if index == last {
                logits = made.flatten_all()?.to_vec1::<f32>()?;
            }
        }
        Ok(logits)
    }
}

struct Report<'a> {
    args: &'a BenchArgs,
    model: &'a Model,
    load: Duration,
    runs: Runs,
}

impl Report<'_> {
    fn name(&self) -> &str {
        self.args.shape.as_deref().or(self.args.model.as_deref()).unwrap_or_default()
    }

    /// Bytes of weights and cache that one decode step in the middle of the run has to read.
    fn bytes_per_token(&self) -> f64 {
        let spec = self.model.spec();
        let weights = spec.parameters() - embedding_only(spec);
        let positions = self.args.context + self.args.tokens / 2;
        let cache_element = if self.model.device().is_cpu() { 4 } else { self.model.dtype().size_in_bytes() };
        (weights as usize * self.model.dtype().size_in_bytes()
            + positions * spec.kv_bytes_per_position(cache_element)) as f64
    }

    /// Bytes per second that the machine reads, if it was asked for.
    fn bandwidth(&self) -> Option<f64> {
        (!self.runs.bandwidth.is_empty()).then(|| Spread::of(&self.runs.bandwidth).median)
    }

    fn json(&self) -> Value {
        let Spread { median, min, max } = Spread::of(&self.runs.prefill);
        let decode = Spread::of(&self.runs.decode);
        json!({
            "model": self.name(),
            "dtype": dtype_name(self.model.dtype()),
            "device": device::kind(self.model.device()),
            "threads": device::threads(),
            "simd": device::simd_level().name(),
            "prefill": { "tok_s": median, "min": min, "max": max, "tokens": self.args.prompt },
            "decode": {
                "tok_s": decode.median, "min": decode.min, "max": decode.max,
                "tokens": self.args.tokens, "context": self.args.context,
                "read_gb_s": decode.median * self.bytes_per_token() / 1e9,
                "launches_per_token": self.runs.launches,
            },
            "repetitions": self.args.repetitions,
            "peak_rss_mb": self.runs.peak,
            "load_s": self.load.as_secs_f64(),
            "memory_read_gb_s": self.bandwidth().map(|bytes| bytes / 1e9),
        })
    }

    fn table(&self) -> String {
        let row = |what: &str, runs: &[f64], how: String| {
            let Spread { median, min, max } = Spread::of(runs);
            format!("{what:<8} {median:>10.1} {min:>10.1} {max:>10.1}   {how}\n")
        };
        let decode = Spread::of(&self.runs.decode).median * self.bytes_per_token();
        let mut text = format!(
            "{}, {}, {}, {} threads, {}\n\n{:<8} {:>10} {:>10} {:>10}\n",
            self.name(),
            dtype_name(self.model.dtype()),
            device::kind(self.model.device()),
            device::threads(),
            device::simd_level(),
            "",
            "tok/s",
            "min",
            "max"
        );
        text += &row("prefill", &self.runs.prefill, format!("{} tokens", self.args.prompt));
        let (tokens, context) = (self.args.tokens, self.args.context);
        text += &row("decode", &self.runs.decode, format!("{tokens} tokens after {context}"));
        text += &format!("\ndecode reads {:.1} GB/s of weights and cache", decode / 1e9);
        if let Some(bandwidth) = self.bandwidth() {
            let share = 100.0 * decode / bandwidth;
            text += &format!(": {share:.0} % of the {:.1} GB/s that this machine reads", bandwidth / 1e9);
        }
        let what = launch_name(self.model.device());
        text += &format!("\n{:.0} {what} per decoded token", self.runs.launches);
        if let Some(peak) = self.runs.peak {
            text += &format!("\npeak memory {peak:.0} MB");
        }
        text.push('\n');
        text
    }
}

/// What [`trace::launches`] counts there.
pub(crate) fn launch_name(device: &Device) -> &'static str {
    if device.is_cpu() { "calls of ops" } else { "launches" }
}

/// Parameters of which a decode step reads one row only: the embedding, unless it is the head too.
fn embedding_only(spec: &DecoderSpec) -> u64 {
    if spec.head.tied { 0 } else { (spec.vocab_size * spec.hidden_size) as u64 }
}

/// The middle of some numbers, and their ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    pub(crate) fn of(runs: &[f64]) -> Self {
        let mut sorted = runs.to_vec();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len() - 1;
        let median = f64::midpoint(sorted[last / 2], sorted[last.div_ceil(2)]);
        Self { median, min: sorted[0], max: sorted[last] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one_or_the_mean_of_two() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]), Spread { median: 2.5, min: 1.0, max: 4.0 });
        assert_eq!(Spread::of(&[7.0]), Spread { median: 7.0, min: 7.0, max: 7.0 });
    }
}
