//! What the parts of a LoRA training step cost at the shape of qwen2.5-0.5b, rank 8 on queries and values: for one block, and for the
//! head.

use candle_core::{DType, Device, Result, Tensor};
use metal_candle_kernels::{
    attention::{AttentionParams, PackedAttention, packed_attention_backward, packed_attention_forward},
    cross_entropy::{HeadWeight, LossParams, lm_head_loss_and_gradients},
    gated::{Activation, gated, gated_backward},
    linear::{Projection, linear, linear_backward, linear_backward_add},
    lora::{LoraAdapter, LoraMember, lora_backward_together, lora_down_together, lora_up_together},
    rms_norm::{ResidualGradient, RmsNorm, add_rms_norm, rms_norm, rms_norm_backward},
    rope::{Pairs, Rotation, rope, rope_backward},
};

use crate::{compute::random, keep, median_seconds};

const HIDDEN: usize = 896;
const KEYS: usize = 128;
const MIDDLE: usize = 4864;
const VOCABULARY: usize = 151_936;
const BLOCKS: usize = 24;

/// Adds up what it measures.
struct Parts<'a> {
    device: &'a Device,
    case: String,
    block_us: f64,
}

impl Parts<'_> {
    fn time(&mut self, name: &str, times: usize, run: impl Fn() -> Result<Vec<Tensor>>) -> Result<()> {
        let us = 1e6 * median_seconds(self.device, 1, 1 << 30, |_| run())?;
        println!("{} {name:<28} {us:>9.1} us x {times}", self.case);
        self.block_us += us * times as f64;
        Ok(())
    }
}

pub(crate) fn print(device: &Device) -> Result<()> {
    for (sequences, length) in [(8, 512), (32, 512), (8, 2048)] {
        one(device, sequences, length)?;
    }
    Ok(())
}

fn one(device: &Device, sequences: usize, length: usize) -> Result<()> {
    let (rows, dtype) = (sequences * length, DType::BF16);
    let mut parts = Parts { device, case: format!("step {sequences}x{length}"), block_us: 0.0 };
    let layer = |outputs: usize, inputs: usize, bias: bool| {
        let bias = if bias { Some(random(&[outputs, 1], dtype, device)?.flatten_all()?) } else { None };
        Ok::<_, candle_core::Error>(Projection { weight: random(&[outputs, inputs], dtype, device)?, bias })
    };
    let x = random(&[rows, HIDDEN], dtype, device)?;
    let narrow = random(&[rows, KEYS], dtype, device)?;
    let middle = random(&[rows, MIDDLE], dtype, device)?;
    let norm = RmsNorm {
        weight: random(&[HIDDEN, 1], dtype, device)?.flatten_all()?,
        epsilon: 1e-6,
        weight_offset: 0.0,
    };
    let (queries, keys, output) =
        (layer(HIDDEN, HIDDEN, true)?, layer(KEYS, HIDDEN, true)?, layer(HIDDEN, HIDDEN, false)?);
    let (up, down) = (layer(MIDDLE, HIDDEN, false)?, layer(HIDDEN, MIDDLE, false)?);

    parts.time("product q, with bias", 1, || keep(linear(&x, &queries)))?;
    parts.time("product k or v, with bias", 2, || keep(linear(&x, &keys)))?;
    parts.time("product o", 1, || keep(linear(&x, &output)))?;
    parts.time("product gate or up", 2, || keep(linear(&x, &up)))?;
    parts.time("product down", 1, || keep(linear(&middle, &down)))?;
    parts.time("back product q or o", 2, || keep(linear_backward(&x, &output)))?;
    let sum = x.copy()?;
    parts.time("back product k or v, added", 2, || {
        linear_backward_add(&narrow, &keys, &sum)?;
        Ok(vec![])
    })?;
    parts.time("back product gate", 1, || keep(linear_backward(&middle, &up)))?;
    parts.time("back product up, added", 1, || {
        linear_backward_add(&middle, &up, &sum)?;
        Ok(vec![])
    })?;
    parts.time("back product down", 1, || keep(linear_backward(&x, &down)))?;
    parts.time("add and norm", 2, || {
        add_rms_norm(&x, &sum, 1.0, &norm).map(|(first, second)| vec![first, second])
    })?;
    parts.time("norm again", 2, || keep(rms_norm(&x, &norm)))?;
    let past = ResidualGradient { past: Some(&sum), scale: 1.0 };
    parts.time("norm back", 2, || keep(rms_norm_backward(&x, &norm, &x, Some(past))))?;
    parts.time("gated", 1, || keep(gated(&middle, &middle, Activation::Silu)))?;
    parts.time("gated back", 1, || {
        gated_backward(&middle, &middle, &middle, Activation::Silu).map(|(first, second)| vec![first, second])
    })?;
    attention(&mut parts, device, sequences, length)?;
    adapters(&mut parts, &x, [&x, &narrow])?;
    let block_us = parts.block_us;
    parts.block_us = 0.0;
    let head = layer(VOCABULARY, HIDDEN, false)?;
    let targets: Vec<u32> = (0..rows).map(|token| (token * 7919 % VOCABULARY) as u32).collect();
    parts.time("head and loss", 1, || {
        let params = LossParams::default();
        keep(Ok(lm_head_loss_and_gradients(&x, &head, &targets, &params, HeadWeight::Frozen)?.1.hidden))
    })?;
    let all = (block_us * BLOCKS as f64 + parts.block_us) / 1e3;
    println!("{} a block {block_us:.0} us, {BLOCKS} blocks and the head {all:.2} ms", parts.case);
    Ok(())
}

fn attention(parts: &mut Parts<'_>, device: &Device, sequences: usize, length: usize) -> Result<()> {
    let rows = sequences * length;
    let heads = |count: usize| random(&[rows, count, 64], DType::BF16, device);
    let (queries, keys) = (heads(14)?, heads(2)?);
    let table = || random(&[rows, 32], DType::F32, device);
    let rotation = Rotation { cos: table()?, sin: table()?, pairs: Pairs::Halves };
    parts.time("rope q", 1, || keep(rope(&queries, &rotation)))?;
    parts.time("rope k", 1, || keep(rope(&keys, &rotation)))?;
    parts.time("rope q back", 1, || keep(rope_backward(&queries, &rotation)))?;
    parts.time("rope k back", 1, || keep(rope_backward(&keys, &rotation)))?;
    let params = AttentionParams { scale: 0.125, soft_cap: None, window: None };
    let starts = (0..=sequences).map(|sequence| (sequence * length) as u32).collect();
    let packing = PackedAttention { starts, params, causal: true };
    let forward = || packed_attention_forward(&queries, &keys, &keys, &packing);
    let (out, lse) = forward()?;
    parts.time("attention", 1, || forward().map(|(out, lse)| vec![out, lse]))?;
    parts.time("attention back", 1, || {
        let (first, second, third) =
            packed_attention_backward(&queries, &keys, &keys, &out, &lse, &queries, &packing)?;
        Ok(vec![first, second, third])
    })
}

/// Adapters of rank 8 on two products of `x` with results like `products`.
fn adapters(parts: &mut Parts<'_>, x: &Tensor, products: [&Tensor; 2]) -> Result<()> {
    const RANK: usize = 8;
    let (inputs, device) = (x.dim(1)?, x.device());
    let matrices = products.map(|y| {
        let a = random(&[RANK, inputs], DType::BF16, device)?;
        let b = random(&[y.dim(1)?, RANK], DType::BF16, device)?;
        let da = Tensor::zeros((RANK, inputs), DType::F32, device)?;
        let db = Tensor::zeros((y.dim(1)?, RANK), DType::F32, device)?;
        Ok::<_, candle_core::Error>((LoraAdapter { a, b, scale: 2.0 }, da, db))
    });
    let [queries, values] = matrices;
    let matrices = [queries?, values?];
    let adapters = [&matrices[0].0, &matrices[1].0];
    let (sums, dx) = ([products[0].copy()?, products[1].copy()?], x.copy()?);
    let projections = lora_down_together(x, &adapters)?;
    parts.time("adapters q and v, down", 1, || Ok(lora_down_together(x, &adapters)?.each().to_vec()))?;
    parts.time("adapters q and v, up", 1, || {
        lora_up_together(&projections, &[&sums[0], &sums[1]], &adapters)?;
        Ok(vec![])
    })?;
    let members: Vec<_> = matrices
        .iter()
        .zip(products)
        .map(|((adapter, da, db), dy)| LoraMember { adapter, dy, da, db })
        .collect();
    parts.time("adapters q and v, back", 1, || {
        lora_backward_together(x, &projections, &members, Some(&dx))?;
        Ok(vec![])
    })
}
