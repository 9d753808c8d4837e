//! One layer's training: a LoRA delta 512 → 512 of rank 8, cross-entropy over its outputs, AdamW.

use anyhow::{Result, ensure};
use candle_core::{D, Tensor, Var};
use metal_candle_kernels::{
    lora::{LoraAdapter, LoraGradients, lora_backward, lora_delta, lora_down, lora_up_in_place},
    optimizer::{Rule, Step, update},
    softmax::{Mask, softmax},
};

use super::lora;
use crate::{Bench, Call, Row, Work};

const WIDTH: usize = 512;
const RANK: usize = 8;
/// Rows of the whole step: `[4, 64, WIDTH]`.
const ROWS: usize = 256;
/// Numbers in A, and in B.
const FACTOR: usize = RANK * WIDTH;

pub(super) fn rows() -> Vec<Row> {
    let split = |id, work, part: fn(&mut Layer) -> Result<()>| {
        Row::new(id, work, move |bench| {
            let mut layer = Layer::new(bench)?;
            layer.step()?;
            Ok(Call::new(move || part(&mut layer)))
        })
    };
    vec![
        forward_backward(),
        adamw(),
        split("full_training_step/complete_iteration", whole(), |layer| layer.step().map(|_| ())),
        split("training_step_split/forward", forward(), |layer| {
            layer.loss = layer.forward()?;
            Ok(())
        }),
        split("training_step_split/backward", backward(), Layer::backward),
        split("training_step_split/optimizer", optimizer(2 * FACTOR), Layer::optimize),
    ]
}

/// Through candle's graph, as a user's own program would: input `[2, 16, WIDTH]`.
fn forward_backward() -> Row {
    const ROWS: usize = 32;
    // Forward, the gradients of A and B, and that of what lies between them.
    let work = Work::new(4 * (2 * ROWS * WIDTH + 4 * FACTOR), 2 * ROWS * FACTOR * 5);
    Row::new("gradient_computation/forward_backward", work, |bench| {
        let x = bench.random((2, 16, WIDTH))?;
        let (a, b) = (bench.random((RANK, WIDTH))?, bench.random((WIDTH, RANK))?);
        let (a, b) = (Var::from_tensor(&a)?, Var::from_tensor(&b)?);
        let targets = targets(bench, ROWS)?;
        Ok(Call::new(move || -> Result<()> {
            let adapter = LoraAdapter { a: a.as_tensor().clone(), b: b.as_tensor().clone(), scale: 2. };
            let logits = lora_delta(&x, &adapter)?.flatten_to(1)?;
            let picked = logits.gather(&targets, 1)?.squeeze(1)?;
            let loss = (logits.log_sum_exp(1)? - picked)?.mean_all()?;
            let gradients = loss.backward()?;
            ensure!(gradients.get(&a).is_some() && gradients.get(&b).is_some(), "a factor has no gradient");
            Ok(())
        }))
    })
}

fn adamw() -> Row {
    const PARAMETERS: usize = 512 * 512;
    Row::new("optimizer_step/adamw_step", optimizer(PARAMETERS), |bench| {
        let (state, gradient) = (bench.zeros((3, PARAMETERS))?, bench.random(PARAMETERS)?);
        let mut number = 0;
        Ok(Call::new(move || {
            number += 1;
            update(&state, &gradient, 0..PARAMETERS, &adamw_step(number))
        }))
    })
}

fn adamw_step(number: u32) -> Step<'static> {
    let rule = Rule::AdamW { betas: [0.9, 0.999], epsilon: 1e-8 };
    Step { rule, number, learning_rate: 1e-4, weight_decay: 0.01, clip: None }
}

/// Three numbers of state read and written, the gradient read.
fn optimizer(parameters: usize) -> Work {
    Work::new(4 * 7 * parameters, 14 * parameters).within(4 * 4 * parameters)
}

/// The delta, and the softmax over its result.
fn forward() -> Work {
    let delta = lora::work(ROWS, WIDTH, RANK);
    Work { flops: delta.flops.map(|flops| flops + (4 * ROWS * WIDTH) as u64), ..delta }
}

/// The gradients of A and B, and that of what lies between them: x and the probabilities are read.
fn backward() -> Work {
    Work::new(4 * (2 * ROWS * WIDTH + 4 * FACTOR), 2 * ROWS * FACTOR * 3)
}

fn whole() -> Work {
    let parts = [forward(), backward(), optimizer(2 * FACTOR)];
    let sum = |part: fn(&Work) -> Option<u64>| parts.iter().map(part).sum();
    Work { bytes: sum(|work| work.bytes), flops: sum(|work| work.flops), ..Work::none() }.yields("rows", ROWS)
}

fn targets(bench: &Bench, rows: usize) -> Result<Tensor> {
    let targets: Vec<u32> = (0..rows).map(|row| (row * 37 % WIDTH) as u32).collect();
    Ok(Tensor::from_vec(targets, (rows, 1), bench.device())?)
}

/// Layer by layer, as our training does it.
struct Layer {
    x: Tensor,
    targets: Tensor,
    minus_one: Tensor,
    adapter: LoraAdapter,
    /// Values and moments of A and B, one after the other: `[3, 2 · FACTOR]`.
    state: Tensor,
    gradient: Tensor,
    /// Views of `gradient`.
    factors: [Tensor; 2],
    /// `[ROWS, RANK]` and `[ROWS, WIDTH]`, of the last forward.
    projected: Tensor,
    probabilities: Tensor,
    loss: f32,
    number: u32,
    zero_logits: Tensor,
}

impl Layer {
    fn new(bench: &Bench) -> Result<Self> {
        let (state, gradient) = (bench.zeros((3, 2 * FACTOR))?, bench.zeros(2 * FACTOR)?);
        state.slice_set(&bench.random((1, 2 * FACTOR))?, 0, 0)?;
        let part = |tensor: &Tensor, start: usize, shape: [usize; 2]| -> Result<Tensor> {
            Ok(tensor.narrow(0, start, FACTOR)?.reshape(&shape)?)
        };
        let factors = |tensor: &Tensor| -> Result<[Tensor; 2]> {
            Ok([part(tensor, 0, [RANK, WIDTH])?, part(tensor, FACTOR, [WIDTH, RANK])?])
        };
        let [a, b] = factors(&state.get(0)?)?;
        let targets = targets(bench, ROWS)?;
        Ok(Self {
            x: bench.random((ROWS, WIDTH))?,
            minus_one: Tensor::full(-1f32, targets.shape(), bench.device())?,
            targets,
            adapter: LoraAdapter { a, b, scale: 2. },
            factors: factors(&gradient)?,
            projected: bench.zeros((ROWS, RANK))?,
            probabilities: bench.zeros((ROWS, WIDTH))?,
            zero_logits: bench.zeros((ROWS, WIDTH))?,
            state,
            gradient,
            loss: 0.,
            number: 0,
        })
    }

    fn step(&mut self) -> Result<f32> {
        self.loss = self.forward()?;
        self.backward()?;
        self.optimize()?;
        Ok(self.loss)
    }

    fn forward(&mut self) -> Result<f32> {
        let logits = self.zero_logits.zeros_like()?;
        self.projected = lora_down(&self.x, &self.adapter)?;
        lora_up_in_place(&self.projected, &logits, &self.adapter)?;
        self.probabilities = softmax(&logits, Mask::None)?;
        // ln Σ exp, from the largest logit and what it has become.
        let log_sum = (logits.max_keepdim(1)? - self.probabilities.max_keepdim(1)?.log()?)?;
        Ok((log_sum - logits.gather(&self.targets, 1)?)?.mean_all()?.to_scalar()?)
    }

    fn backward(&mut self) -> Result<()> {
        let d_logits = self.probabilities.scatter_add(&self.targets, &self.minus_one, D::Minus1)?;
        let d_logits = (d_logits / ROWS as f64)?;
        self.gradient.zero_set()?;
        let [da, db] = &self.factors;
        let into = LoraGradients { dx: None, da, db };
        Ok(lora_backward(&self.x, &d_logits, &self.adapter, &self.projected, &into)?)
    }

    fn optimize(&mut self) -> Result<()> {
        self.number += 1;
        Ok(update(&self.state, &self.gradient, 0..2 * FACTOR, &adamw_step(self.number))?)
    }
}
