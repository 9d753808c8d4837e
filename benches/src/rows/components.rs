//! The parts of Qwen2.5-0.5B for one sequence of 512 tokens: weights in bf16, activations as the device computes.

use anyhow::Result;
use candle_core::{DType, Tensor};
use metal_candle_kernels::{
    attention::{AttentionParams, PackedAttention, packed_attention_forward},
    embedding::embedding,
    linear::{Activation, Projection, gated_linear, linear, linear_many},
    rms_norm::{RmsNorm, add_rms_norm, rms_norm},
    rope::{Pairs, Rotation, rope},
};

use crate::{
    Bench, Call, Row, Work,
    qwen::{self, HEAD_DIM, HEADS, HIDDEN, INTERMEDIATE, KV_HEADS, VOCABULARY},
};

/// T
const ROWS: usize = 512;
const QUERIES: usize = HEADS * HEAD_DIM;
const KEYS: usize = KV_HEADS * HEAD_DIM;
/// Pairs of a row and one that it sees.
const PAIRS: usize = ROWS * (ROWS + 1) / 2;

pub(super) fn rows() -> Vec<Row> {
    let attention_weights = HIDDEN * (2 * QUERIES + 2 * KEYS);
    let mlp_weights = 3 * HIDDEN * INTERMEDIATE;
    let attention_flops = 2 * ROWS * attention_weights + 4 * PAIRS * QUERIES;
    let stream = 2 * 4 * ROWS * HIDDEN;
    let part = |name: &str, weights: usize, flops, run: fn(&Layer) -> candle_core::Result<Tensor>| {
        let id = format!("model_components/{name}");
        let work = Work::new(2 * weights + stream, flops).yields("tokens", ROWS);
        Row::new(id, work, move |bench| {
            let layer = Layer::new(bench)?;
            Ok(Call::new(move || run(&layer)))
        })
    };
    vec![
        embed(),
        rotate(),
        part("attention", attention_weights, attention_flops, |layer| layer.attention(&layer.x)).slow(),
        part("mlp", mlp_weights, 2 * ROWS * mlp_weights, |layer| layer.mlp(&layer.x)).slow(),
        part(
            "layer",
            attention_weights + mlp_weights,
            attention_flops + 2 * ROWS * mlp_weights,
            Layer::forward,
        )
        .slow(),
    ]
}

fn embed() -> Row {
    let work = Work::bytes((2 + 4) * ROWS * HIDDEN).yields("tokens", ROWS);
    Row::new("model_components/embedding", work, |bench| {
        let table = Tensor::zeros((VOCABULARY, HIDDEN), DType::BF16, bench.device())?;
        let (tokens, compute) = (qwen::tokens(ROWS), compute(bench));
        Ok(Call::new(move || embedding(&table, &tokens, 1., compute)))
    })
}

/// Queries and keys.
fn rotate() -> Row {
    let numbers = ROWS * (QUERIES + KEYS);
    let work = Work::new(2 * 4 * numbers, 3 * numbers).yields("tokens", ROWS);
    Row::new("model_components/rope", work, |bench| {
        let queries = random(bench, &[ROWS, HEADS, HEAD_DIM])?;
        let keys = random(bench, &[ROWS, KV_HEADS, HEAD_DIM])?;
        let rotation = rotation(bench)?;
        Ok(Call::new(move || -> Result<_> { Ok((rope(&queries, &rotation)?, rope(&keys, &rotation)?)) }))
    })
}

/// Activations are f32 on the processor, elsewhere in the weights' dtype.
fn compute(bench: &Bench) -> DType {
    if bench.device().is_cpu() { DType::F32 } else { DType::BF16 }
}

fn random(bench: &Bench, shape: &[usize]) -> Result<Tensor> {
    Ok(bench.random(shape)?.to_dtype(compute(bench))?)
}

/// Of the positions from 0 on.
fn rotation(bench: &Bench) -> Result<Rotation> {
    let frequency = |pair: usize| 1e6f32.powf(-2. * pair as f32 / HEAD_DIM as f32);
    let angles = (0..ROWS).flat_map(|row| (0..HEAD_DIM / 2).map(move |pair| row as f32 * frequency(pair)));
    let angles = Tensor::from_iter(angles, bench.device())?.reshape((ROWS, HEAD_DIM / 2))?;
    Ok(Rotation { cos: angles.cos()?, sin: angles.sin()?, pairs: Pairs::Halves })
}

/// One layer, and its input.
struct Layer {
    /// `[T, HIDDEN]`
    x: Tensor,
    norm: RmsNorm,
    queries: Projection,
    keys: Projection,
    values: Projection,
    output: Projection,
    gate: Projection,
    up: Projection,
    down: Projection,
    rotation: Rotation,
    packing: PackedAttention,
}

impl Layer {
    fn new(bench: &Bench) -> Result<Self> {
        let projection = |outputs: usize, inputs: usize, has_bias: bool| -> Result<Projection> {
            let weight = (bench.random((outputs, inputs))? * (inputs as f64).sqrt().recip())?;
            let bias = if has_bias { Some(bench.random(outputs)?.to_dtype(DType::BF16)?) } else { None };
            Ok(Projection { weight: weight.to_dtype(DType::BF16)?, bias })
        };
        let weight = Tensor::ones(HIDDEN, DType::BF16, bench.device())?;
        let params =
            AttentionParams { scale: (HEAD_DIM as f32).sqrt().recip(), soft_cap: None, window: None };
        Ok(Self {
            x: random(bench, &[ROWS, HIDDEN])?,
            norm: RmsNorm { weight, epsilon: 1e-6, weight_offset: 0. },
            queries: projection(QUERIES, HIDDEN, true)?,
            keys: projection(KEYS, HIDDEN, true)?,
            values: projection(KEYS, HIDDEN, true)?,
            output: projection(HIDDEN, QUERIES, false)?,
            gate: projection(INTERMEDIATE, HIDDEN, false)?,
            up: projection(INTERMEDIATE, HIDDEN, false)?,
            down: projection(HIDDEN, INTERMEDIATE, false)?,
            rotation: rotation(bench)?,
            packing: PackedAttention { starts: vec![0, ROWS as u32], params, causal: true },
        })
    }

    fn attention(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let [queries, keys, values] = linear_many(x, [&self.queries, &self.keys, &self.values])?;
        let queries = rope(&queries.reshape((ROWS, HEADS, HEAD_DIM))?, &self.rotation)?;
        let keys = rope(&keys.reshape((ROWS, KV_HEADS, HEAD_DIM))?, &self.rotation)?;
        let values = values.reshape((ROWS, KV_HEADS, HEAD_DIM))?;
        let (mixed, _) = packed_attention_forward(&queries, &keys, &values, &self.packing)?;
        linear(&mixed.reshape((ROWS, QUERIES))?, &self.output)
    }

    fn mlp(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        linear(&gated_linear(x, &self.gate, &self.up, Activation::Silu)?, &self.down)
    }

    fn forward(&self) -> candle_core::Result<Tensor> {
        let delta = self.attention(&rms_norm(&self.x, &self.norm)?)?;
        let (stream, normed) = add_rms_norm(&self.x, &delta, 1., &self.norm)?;
        stream + self.mlp(&normed)?
    }
}
