//! What choosing one token costs, by sampler, vocabulary and shape of the distribution.

use std::time::{Duration, Instant};

use criterion::{Bencher, BenchmarkId, Criterion, criterion_group, criterion_main};
use metal_candle::generate::sampler::{Sampler, SamplingParams};

criterion_group!(benches, sampling_vocab_sweep, inference);
criterion_main!(benches);

fn sampling_vocab_sweep(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sampling_vocab_sweep");
    let greedy = SamplingParams::default();
    let drawn = SamplingParams { temperature: 0.7, seed: Some(0), ..greedy.clone() };
    let samplers = [
        ("greedy", greedy.clone()),
        ("temperature_0.7", drawn.clone()),
        ("top_k_10", SamplingParams { top_k: 10, ..drawn.clone() }),
        ("top_k_40", SamplingParams { top_k: 40, ..drawn.clone() }),
        ("top_k_50", SamplingParams { top_k: 50, ..drawn.clone() }),
        ("top_p_0.9", SamplingParams { top_p: 0.9, ..drawn.clone() }),
        ("top_p_0.95", SamplingParams { top_p: 0.95, ..drawn.clone() }),
        ("min_p_0.05", SamplingParams { min_p: 0.05, ..drawn.clone() }),
        ("typical_p_0.9", SamplingParams { typical_p: 0.9, ..drawn.clone() }),
        ("xtc", SamplingParams { xtc_probability: 1.0, ..drawn.clone() }),
        ("top_k_50_top_p_0.9", SamplingParams { top_k: 50, top_p: 0.9, ..drawn.clone() }),
        ("top_k_1000", SamplingParams { top_k: 1000, ..drawn.clone() }),
        ("top_k_5000", SamplingParams { top_k: 5000, ..drawn.clone() }),
        ("top_k_50000", SamplingParams { top_k: 50_000, ..drawn.clone() }),
        ("top_p_0.9_xtc", SamplingParams { top_p: 0.9, xtc_probability: 1.0, ..drawn.clone() }),
        ("top_p_0.9_min_p_0.05", SamplingParams { top_p: 0.9, min_p: 0.05, ..drawn.clone() }),
        ("typical_p_0.9_top_p_0.9", SamplingParams { typical_p: 0.9, top_p: 0.9, ..drawn.clone() }),
        ("typical_p_0.9_xtc", SamplingParams { typical_p: 0.9, xtc_probability: 1.0, ..drawn.clone() }),
        ("all_filters", everything(&drawn)),
        ("greedy_logprobs_20", SamplingParams { logprobs: Some(20), ..greedy.clone() }),
        ("greedy_penalties", SamplingParams { repetition_penalty: 1.1, repetition_context: None, ..greedy }),
    ];
    for vocab_size in [32_000, 151_936] {
        for (shape, logits) in [("flat", flat(vocab_size)), ("peaked", peaked(vocab_size))] {
            for (name, params) in &samplers {
                let id = BenchmarkId::new(format!("{name}/{shape}"), vocab_size);
                group.bench_function(id, |bencher| sample(bencher, params, &logits));
            }
        }
    }
    group.finish();
}

fn inference(criterion: &mut Criterion) {
    let params = SamplingParams { temperature: 1.0, top_p: 0.9, seed: Some(0), ..SamplingParams::default() };
    let logits = flat(32_000);
    criterion
        .benchmark_group("inference")
        .bench_function("sampling", |bencher| sample(bencher, &params, &logits));
}

/// Every filter and penalty at once, each of which leaves the next one much to do.
fn everything(drawn: &SamplingParams) -> SamplingParams {
    SamplingParams {
        top_k: 50_000,
        top_p: 0.99,
        min_p: 0.001,
        typical_p: 0.95,
        xtc_probability: 1.0,
        repetition_penalty: 1.1,
        repetition_context: None,
        presence_penalty: 0.1,
        frequency_penalty: 0.1,
        logprobs: Some(20),
        ..drawn.clone()
    }
}

/// Times the sampler alone: the model would write fresh logits each time, so copying them does not count.
fn sample(bencher: &mut Bencher<'_>, params: &SamplingParams, logits: &[f32]) {
    let mut sampler = Sampler::new(params.clone(), logits.len()).expect("the parameters are in range");
    let prompt: Vec<u32> = (0..1024).map(|index| index * 7 % 5000).collect();
    let history = sampler.history(&prompt);
    let mut scratch = logits.to_vec();
    bencher.iter_custom(|iterations| {
        let mut total = Duration::ZERO;
        for _ in 0..iterations {
            scratch.copy_from_slice(logits);
            let start = Instant::now();
            let sampled = sampler.sample(&mut scratch, &history).expect("the logits are finite");
            total += start.elapsed();
            std::hint::black_box(sampled);
        }
        total
    });
}

/// Bell-shaped logits of standard deviation 1: almost every token has a share.
fn flat(vocab_size: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    // The sum of twelve uniform numbers has variance 1.
    (0..vocab_size).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
}

/// As a trained model's: a few tokens stand far above the bell.
fn peaked(vocab_size: usize) -> Vec<f32> {
    let mut logits = flat(vocab_size);
    logits.iter_mut().for_each(|logit| *logit *= 2.0);
    for rank in 0..20 {
        logits[(rank * 7919 + 13) % vocab_size] = 22.0 - rank as f32 * 0.7;
    }
    logits
}
