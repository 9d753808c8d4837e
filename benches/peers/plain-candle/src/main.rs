//! Prefill, decode and LoRA training with candle as it is. Reads one job as JSON, says when it is ready, then measures once
//! for each line that it reads: what every peer of `benches/peers` does.

mod train;

use std::{
    io::{BufRead, Write},
    time::Instant,
};

use anyhow::{Result, bail};
use candle_core::{D, DType, Device, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use candle_transformers::models::qwen2::{Config, ModelForCausalLM};
use serde::Deserialize;
use serde_json::{Value, json};

/// What the driver asks for; it sends keys for other peers too.
#[derive(Debug, Deserialize)]
struct Job {
    work: String,
    device: String,
    dtype: String,
    config: Config,
    prompt: usize,
    tokens: usize,
    batch: usize,
    seq: usize,
    rank: usize,
    repetitions: usize,
    seconds: f64,
}

fn main() -> Result<()> {
    let text = std::env::args().nth(1).unwrap_or_default();
    let job: Job = serde_json::from_str(&text)?;
    let device = match job.device.as_str() {
        "cpu" => Device::Cpu,
        "cuda" => Device::new_cuda(0)?,
        "metal" => Device::new_metal(0)?,
        other => bail!("no device `{other}`; use cpu, cuda or metal"),
    };
    let dtype = match job.dtype.as_str() {
        "f32" => DType::F32,
        "bf16" => DType::BF16,
        other => bail!("no dtype `{other}`; use f32 or bf16"),
    };
    let weights = VarBuilder::from_backend(Box::new(Random), dtype, device.clone());
    if job.work == "train" {
        let mut lora = train::Training::new(&job.config, weights, job.batch, job.seq, job.rank)?;
        let first = timed(&device, || lora.step())?;
        return serve(first, || {
            let seconds = repeated(&job, &mut || timed(&device, || lora.step()))?;
            let tokens = (job.batch * job.seq) as f64;
            Ok(json!({ "train": tokens / seconds, "ms": 1e3 * seconds, "peak_rss_mb": peak_rss_mb() }))
        });
    }
    let mut model = ModelForCausalLM::new(&job.config, weights)?;
    let prompt = tokens(&job.config, 1, job.prompt.max(1), &device)?;
    let first = timed(&device, || prefill(&mut model, &prompt))?;
    serve(first, || {
        let mut found = json!({});
        if job.prompt > 0 {
            let run = &mut || timed(&device, || prefill(&mut model, &prompt));
            settle(&job, run)?;
            let seconds = repeated(&job, run)?;
            found["prefill"] = json!(job.prompt as f64 / seconds);
        }
        if job.tokens > 0 {
            let run = &mut || decode(&mut model, &prompt, job.tokens);
            settle(&job, run)?;
            let seconds = repeated(&job, run)?;
            found["decode"] = json!(job.tokens as f64 / seconds);
        }
        found["peak_rss_mb"] = json!(peak_rss_mb());
        Ok(found)
    })
}

fn prefill(model: &mut ModelForCausalLM, prompt: &Tensor) -> Result<()> {
    model.clear_kv_cache();
    model.forward(prompt, 0)?.flatten_all()?.argmax(D::Minus1)?.to_scalar::<u32>()?;
    Ok(())
}

fn decode(model: &mut ModelForCausalLM, prompt: &Tensor, count: usize) -> Result<f64> {
    model.clear_kv_cache();
    let mut token = prompt.narrow(1, 0, 1)?;
    let start = Instant::now();
    for position in 0..count {
        let id = model.forward(&token, position)?.flatten_all()?.argmax(D::Minus1)?.to_scalar::<u32>()?;
        token = Tensor::new(&[[id]], token.device())?;
    }
    Ok(start.elapsed().as_secs_f64())
}

/// Prints that it is ready, then a result for each line of the input.
fn serve(first_s: f64, mut measure: impl FnMut() -> Result<Value>) -> Result<()> {
    print(&json!({ "ready": true, "version": "0.11.1", "first_s": first_s }))?;
    for line in std::io::stdin().lock().lines() {
        line?;
        print(&measure()?)?;
    }
    Ok(())
}

fn print(value: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}

/// A GPU that waited for its turn has lowered its clocks, and a prompt takes only milliseconds.
fn settle(job: &Job, run: &mut dyn FnMut() -> Result<f64>) -> Result<()> {
    let begin = Instant::now();
    while job.device != "cpu" && begin.elapsed().as_secs_f64() < 0.3 {
        run()?;
    }
    Ok(())
}

/// The middle of several times, of fewer when they take long.
fn repeated(job: &Job, run: &mut dyn FnMut() -> Result<f64>) -> Result<f64> {
    let begin = Instant::now();
    let mut times = vec![run()?];
    while times.len() < job.repetitions && begin.elapsed().as_secs_f64() < job.seconds {
        times.push(run()?);
    }
    times.sort_by(f64::total_cmp);
    Ok((times[(times.len() - 1) / 2] + times[times.len() / 2]) / 2.0)
}

fn timed(device: &Device, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    device.synchronize()?;
    let start = Instant::now();
    work()?;
    device.synchronize()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Token ids, the same every time.
fn tokens(config: &Config, batch: usize, count: usize, device: &Device) -> Result<Tensor> {
    let vocabulary = config.vocab_size as u64;
    let ids = (0..(batch * count) as u64).map(|index| ((index * 2_654_435_761 + 12_345) % vocabulary) as u32);
    Ok(Tensor::from_iter(ids, device)?.reshape((batch, count))?)
}

/// Weights of no meaning.
struct Random;

impl SimpleBackend for Random {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        match name {
            _ if name.contains("norm") => Tensor::ones(shape, dtype, device),
            _ if name.ends_with("bias") => Tensor::zeros(shape, dtype, device),
            _ => Tensor::randn(0f32, 0.02f32, shape, device)?.to_dtype(dtype),
        }
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("the shape of {name} is not known")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        name != "lm_head.weight"
    }
}

/// The most memory that this process has held, as the system counts it.
fn peak_rss_mb() -> f64 {
    // SAFETY: `usage` is plain numbers, for which zero is a value, and getrusage writes no more than it.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: as above; the pointer lives through the call.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    let unit = if cfg!(target_os = "macos") { 1.0 / 1024.0 } else { 1.0 };
    usage.ru_maxrss as f64 * unit / 1024.0
}
