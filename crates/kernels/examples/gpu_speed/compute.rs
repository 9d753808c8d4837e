//! Attention, the head's loss and adapters.

use candle_core::{DType, Device, Result, Tensor};
use metal_candle_kernels::{
    attention::{AttentionParams, PackedAttention, packed_attention_backward, packed_attention_forward},
    cross_entropy::{HeadWeight, LossParams, lm_head_loss_and_gradients},
    linear::{Projection, linear, linear_backward},
    lora::{LoraAdapter, LoraStack, RowSlots, linear_with_adapters, lora_stacked_in_place},
};

use crate::{keep, median_seconds};

pub(crate) fn print(device: &Device) -> Result<()> {
    let dtype = if device.is_cpu() { DType::F32 } else { DType::BF16 };
    for (sequences, length, heads, groups, head_dim) in
        [(8, 2048, 14, 2, 64), (8, 512, 14, 2, 64), (32, 512, 14, 2, 64), (8, 2048, 16, 4, 128)]
    {
        attention(device, dtype, sequences, length, (heads, groups, head_dim))?;
    }
    head_loss(device, dtype)?;
    for rank in [8, 16] {
        for (inputs, outputs) in [(4096, 4096), (4096, 14_336), (8192, 28_672)] {
            adapters(device, dtype, (inputs, outputs), rank)?;
        }
    }
    Ok(())
}

/// Causal attention of sequences of one length.
fn attention(
    device: &Device,
    dtype: DType,
    sequences: usize,
    length: usize,
    (heads, groups, head_dim): (usize, usize, usize),
) -> Result<()> {
    let rows = sequences * length;
    let random = |heads| random(&[rows, heads, head_dim], dtype, device);
    let (queries, keys, values, d_out) = (random(heads)?, random(groups)?, random(groups)?, random(heads)?);
    let params = AttentionParams { scale: (head_dim as f32).sqrt().recip(), soft_cap: None, window: None };
    let starts = (0..=sequences).map(|sequence| (sequence * length) as u32).collect();
    let packing = PackedAttention { starts, params, causal: true };
    let forward = || packed_attention_forward(&queries, &keys, &values, &packing);
    let (out, lse) = forward()?;
    let flops = 2. * (sequences * length * length * heads * head_dim) as f64; // half of the scores, two products
    let case = format!("attention {sequences}x{length} H{heads} G{groups} D{head_dim}");
    let seconds = median_seconds(device, 1, 1 << 29, |_| {
        let (out, lse) = forward()?;
        Ok(vec![out, lse])
    })?;
    line(&case, "forward", seconds, flops);
    let seconds = median_seconds(device, 1, 1 << 29, |_| {
        let (first, second, third) =
            packed_attention_backward(&queries, &keys, &values, &out, &lse, &d_out, &packing)?;
        Ok(vec![first, second, third])
    })?;
    line(&case, "backward", seconds, 2.5 * flops);
    Ok(())
}

/// The head and its loss for many tokens, beside the two products alone.
fn head_loss(device: &Device, dtype: DType) -> Result<()> {
    let (tokens, width, vocabulary) =
        if device.is_cpu() { (256, 896, 151_936) } else { (16_384, 896, 151_936) };
    let head = Projection { weight: random(&[vocabulary, width], dtype, device)?, bias: None };
    let hidden = random(&[tokens, width], dtype, device)?;
    let targets: Vec<u32> = (0..tokens).map(|token| (token * 7919 % vocabulary) as u32).collect();
    let params = LossParams::default();
    let flops = 4. * (tokens * width * vocabulary) as f64;
    let case = format!("loss {tokens}x{width}x{vocabulary}");
    let seconds = median_seconds(device, 1, 1 << 31, |_| {
        keep(Ok(lm_head_loss_and_gradients(&hidden, &head, &targets, &params, HeadWeight::Frozen)?.1.hidden))
    })?;
    line(&case, "both", seconds, flops);
    // The same products in pieces of 2,048 tokens: all logits at once would not be what is compared.
    let piece = hidden.narrow(0, 0, 2048.min(tokens))?;
    let seconds = median_seconds(device, 1, 1 << 31, |_| {
        let logits = linear(&piece, &head)?;
        keep(linear_backward(&logits, &head))
    })?;
    let pieces = tokens as f64 / 2048f64.min(tokens as f64);
    line(&case, "products", seconds * pieces, flops);
    Ok(())
}

/// Sixteen rows, each with an adapter of its own, beside the base layer alone.
fn adapters(device: &Device, dtype: DType, (inputs, outputs): (usize, usize), rank: usize) -> Result<()> {
    const ROWS: usize = 16;
    // So many layers that their weights do not stay in a cache.
    let layers = 1_000_000_000usize.div_ceil(2 * inputs * outputs).clamp(2, 16);
    let x = random(&[ROWS, inputs], dtype, device)?;
    let mut made = Vec::new();
    for _ in 0..layers {
        let weight = random(&[outputs, inputs], dtype, device)?;
        let mut stack = LoraStack::new(ROWS, rank, (outputs, inputs), dtype, device)?;
        for slot in 0..ROWS {
            let a = random(&[rank, inputs], dtype, device)?;
            let b = random(&[outputs, rank], dtype, device)?;
            stack.set(slot, &LoraAdapter { a, b, scale: 2. })?;
        }
        made.push((Projection { weight, bias: None }, stack));
    }
    let slots: Vec<Option<u32>> = (0..ROWS as u32).map(Some).collect();
    let slots = RowSlots::new(&slots, device)?;
    let case = format!("lora {ROWS} adapters {inputs}x{outputs} r{rank}");
    let flops = 2. * (ROWS * inputs * outputs) as f64;
    let base = median_seconds(device, layers, 1 << 28, |set| keep(linear(&x, &made[set].0)))?;
    line(&case, "base", base, flops);
    let none = RowSlots::new(&[None; ROWS], device)?;
    for (pass, slots) in [("one launch, no adapters", &none), ("one launch", &slots)] {
        let seconds = median_seconds(device, layers, 1 << 28, |set| {
            keep(linear_with_adapters(&x, &made[set].0, &made[set].1, slots))
        })?;
        line(&case, pass, seconds, flops);
        println!("{case}, {pass}: {:+.2} % of the base layer", (seconds / base - 1.) * 100.);
    }
    let seconds = median_seconds(device, layers, 1 << 28, |set| {
        let y = linear(&x, &made[set].0)?;
        lora_stacked_in_place(&x, &y, &made[set].1, &slots)?;
        keep(Ok(y))
    })?;
    line(&case, "two launches", seconds, flops);
    Ok(())
}

fn line(case: &str, pass: &str, seconds: f64, flops: f64) {
    let (microseconds, rate) = (seconds * 1e6, flops / seconds * 1e-12);
    println!(r#"{{"case":"{case}","pass":"{pass}","us":{microseconds:.2},"tflop_s":{rate:.1}}}"#);
}

/// Small random numbers; rows repeat, so that large tensors are made quickly.
pub(crate) fn random(shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    let width: usize = shape[1..].iter().product();
    let distinct = shape[0].min(256);
    let block = (Tensor::randn(0f32, 1f32, (1, distinct, width), &Device::Cpu)? * 0.5)?;
    let block = block.to_dtype(dtype)?.to_device(device)?;
    let times = shape[0].div_ceil(distinct);
    let all = block.broadcast_as((times, distinct, width))?.contiguous()?;
    all.reshape((times * distinct, width))?.narrow(0, 0, shape[0])?.copy()?.reshape(shape)
}
