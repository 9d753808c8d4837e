//! The benches that this project was born from, under the names that they were published with.
#![allow(missing_docs)]

use candle_core::{D, DType, Device, Result, Tensor, Var};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use metal_candle_kernels::{
    layer_norm::{LayerNorm, layer_norm},
    lora::{LoraAdapter, LoraGradients, lora_backward, lora_delta, lora_down, lora_up_in_place},
    optimizer::{Rule, Step, update},
    rms_norm::{RmsNorm, rms_norm},
    softmax::{Mask, softmax},
};

criterion_group!(
    benches,
    lora_forward,
    lora_rank_scaling,
    layer_operations,
    optimizer_step,
    gradient_computation,
    full_training_step
);
criterion_main!(benches);

fn lora_forward(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lora_forward");
    for (name, width, rank) in [
        ("small_512x512_r8", 512, 8),
        ("medium_1024x1024_r8", 1024, 8),
        ("large_2048x2048_r8", 2048, 8),
        ("small_512x512_r16", 512, 16),
    ] {
        let (x, adapter) = (random(&[4, 16, width]), adapter(width, rank));
        group.bench_function(BenchmarkId::new("forward", name), |bencher| {
            bencher.iter(|| lora_delta(&x, &adapter).expect("shapes fit"));
        });
    }
}

fn lora_rank_scaling(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lora_rank_scaling");
    let x = random(&[2, 32, 1024]);
    for rank in [4, 8, 16, 32, 64] {
        let adapter = adapter(1024, rank);
        group.bench_function(BenchmarkId::new("forward", format!("rank_{rank}")), |bencher| {
            bencher.iter(|| lora_delta(&x, &adapter).expect("shapes fit"));
        });
    }
}

fn layer_operations(criterion: &mut Criterion) {
    let x = Tensor::randn(0f32, 1f32, (4, 16, 1024), &Device::Cpu).expect("a tensor of this size fits");
    let weight = Tensor::ones(1024, DType::F32, &Device::Cpu).expect("a tensor of this size fits");
    let mut group = criterion.benchmark_group("layer_operations");
    group.bench_function("softmax_stable", |bencher| {
        bencher.iter(|| std::hint::black_box(softmax(&x, Mask::None)));
    });
    let norm = LayerNorm { weight: weight.clone(), bias: Some(weight.clone()), epsilon: 1e-5 };
    group
        .bench_function("layer_norm", |bencher| bencher.iter(|| std::hint::black_box(layer_norm(&x, &norm))));
    let norm = RmsNorm { weight, epsilon: 1e-5, weight_offset: 0. };
    group.bench_function("rms_norm", |bencher| bencher.iter(|| std::hint::black_box(rms_norm(&x, &norm))));
    group.finish();
}

fn optimizer_step(criterion: &mut Criterion) {
    const PARAMETERS: usize = 512 * 512;
    let made = || -> Result<[Tensor; 2]> {
        let state = Tensor::zeros((3, PARAMETERS), DType::F32, &Device::Cpu)?;
        Ok([state, Tensor::randn(0f32, 1f32, PARAMETERS, &Device::Cpu)?])
    };
    let [state, gradient] = made().expect("tensors of this size fit");
    let rule = Rule::AdamW { betas: [0.9, 0.999], epsilon: 1e-8 };
    let mut number = 0;
    let mut group = criterion.benchmark_group("optimizer_step");
    group.bench_function("adamw_step", |bencher| {
        bencher.iter(|| {
            number += 1;
            let step = Step { rule, number, learning_rate: 1e-4, weight_decay: 0.01, clip: None };
            update(&state, &gradient, 0..PARAMETERS, &step).expect("the shapes fit");
        });
    });
    group.finish();
}

/// Through candle's graph, as a user's own program would.
fn gradient_computation(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("gradient_computation");
    let x = random(&[2, 16, 512]);
    let [a, b] = [&[8, 512], &[512, 8]].map(|shape| Var::from_tensor(&random(shape)).expect("a tensor"));
    let targets = targets(32, 512);
    let step = || -> Result<()> {
        let adapter = LoraAdapter { a: a.as_tensor().clone(), b: b.as_tensor().clone(), scale: 2. };
        let logits = lora_delta(&x, &adapter)?.flatten_to(1)?;
        let picked = logits.gather(&targets, 1)?.squeeze(1)?;
        let loss = (logits.log_sum_exp(1)? - picked)?.mean_all()?;
        let gradients = loss.backward()?;
        assert!(gradients.get(&a).is_some() && gradients.get(&b).is_some());
        Ok(())
    };
    group.bench_function("forward_backward", |bencher| bencher.iter(|| step().expect("shapes fit")));
}

/// Layer by layer, as our training does it.
fn full_training_step(criterion: &mut Criterion) {
    const RANK: usize = 8;
    const WIDTH: usize = 512;
    let mut group = criterion.benchmark_group("full_training_step");
    let (x, targets) = (random(&[256, WIDTH]), targets(256, WIDTH as u32));
    let half = RANK * WIDTH;
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).expect("memory");
    // Values and moments of A and B, one after the other.
    let (state, gradient) = (zeros(&[3, 2 * half]), zeros(&[2 * half]));
    state.slice_set(&random(&[1, 2 * half]), 0, 0).expect("shapes fit");
    let part = |tensor: &Tensor, start: usize, shape: [usize; 2]| {
        tensor.narrow(0, start, half).and_then(|part| part.reshape(&shape)).expect("shapes fit")
    };
    let values = state.get(0).expect("three rows");
    let adapter =
        LoraAdapter { a: part(&values, 0, [RANK, WIDTH]), b: part(&values, half, [WIDTH, RANK]), scale: 2. };
    let (da, db) = (part(&gradient, 0, [RANK, WIDTH]), part(&gradient, half, [WIDTH, RANK]));
    let minus_one = Tensor::full(-1f32, targets.shape(), &Device::Cpu).expect("memory");
    let mut number = 0;
    let mut step = || -> Result<f32> {
        let logits = zeros(&[256, WIDTH]);
        let projected = lora_down(&x, &adapter)?;
        lora_up_in_place(&projected, &logits, &adapter)?;
        let probabilities = softmax(&logits, Mask::None)?;
        // ln Σ exp, from the largest logit and what it has become.
        let log_sum = (logits.max_keepdim(1)? - probabilities.max_keepdim(1)?.log()?)?;
        let loss = (log_sum - logits.gather(&targets, 1)?)?.mean_all()?;
        let d_logits = (probabilities.scatter_add(&targets, &minus_one, D::Minus1)? / 256.)?;
        gradient.zero_set()?;
        let into = LoraGradients { dx: None, da: &da, db: &db };
        lora_backward(&x, &d_logits, &adapter, &projected, &into)?;
        number += 1;
        let rule = Rule::AdamW { betas: [0.9, 0.999], epsilon: 1e-8 };
        let step = Step { rule, number, learning_rate: 1e-4, weight_decay: 0.01, clip: None };
        update(&state, &gradient, 0..2 * half, &step)?;
        loss.to_scalar()
    };
    group.bench_function("complete_iteration", |bencher| bencher.iter(|| step().expect("shapes fit")));
}

fn adapter(width: usize, rank: usize) -> LoraAdapter {
    LoraAdapter { a: random(&[rank, width]), b: random(&[width, rank]), scale: 2. }
}

fn random(shape: &[usize]) -> Tensor {
    Tensor::randn(0f32, 1f32, shape, &Device::Cpu).expect("memory")
}

fn targets(rows: usize, classes: u32) -> Tensor {
    let targets: Vec<u32> = (0..rows as u32).map(|row| row * 37 % classes).collect();
    Tensor::from_vec(targets, (rows, 1), &Device::Cpu).expect("one target per row")
}
