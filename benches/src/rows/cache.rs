//! The KV cache: its position, appending to it, and what it saves.
//!
//! Figures for a "forward pass" of 480 µs and a "generation cycle" of 629 µs at the shape of Qwen2.5-0.5B were published,
//! and no machine runs 128 tokens through 494 million parameters in 480 µs: that would be 190 TFLOP/s. The sources of the
//! crate that published them say what was timed, all on random tensors and without a model: one token's keys and values
//! handed to an emptied cache of one layer (12 ns) and of 24 (337 ns), which keeps handles and copies nothing until the
//! second token; top-p over 32,000 logits (480 µs); and the latter two one after the other (629 µs). The same steps are
//! rows here, in which a cache copies what it is given; the passes through a model are rows of their own.

use std::{hint::black_box, sync::Arc};

use anyhow::Result;
use candle_core::{DType, Tensor};
use metal_candle::{
    cache::{CHUNK, KvCache},
    generate::sampler::SamplingParams,
    model::{LogitsFor, Model, SequenceInput, weights::Weights},
};
use metal_candle_kernels::attention::KvChunk;

use super::{
    generation::Decoder,
    sampling::{self, Draw},
};
use crate::{
    Bench, Call, Row, Work,
    qwen::{self, HEAD_DIM, KV_HEADS, LAYERS},
    tiny,
};

pub(super) fn rows() -> Vec<Row> {
    let mut rows = vec![
        position(),
        update("kv_cache_update/single_layer_update", 1),
        update("kv_cache_update/all_layers_update", LAYERS),
        generation_cycle(),
    ];
    rows.extend([512, 1024, 2048].map(fill));
    rows
}

/// What the cache saves: the 512th token alone, and all 512 of them.
pub(super) fn model_rows() -> Vec<Row> {
    vec![
        token_512("kv_cache/token_512_with", true),
        token_512("kv_cache/token_512_without", false),
        generate_512("kv_cache/generate_512_with", true),
        generate_512("kv_cache/generate_512_without", false),
    ]
}

/// A model with the cache of Qwen2.5-0.5B and little else.
pub(super) fn cache_model(bench: &Bench) -> Result<Model> {
    let spec = qwen::cache_spec()?;
    let weights = Weights::random(&spec.tensors(), DType::BF16, bench.device(), 1)?;
    Ok(Model::new(spec, weights, bench.device())?)
}

/// Runs tokens in pieces of 512, as the engine does, without logits.
pub(super) fn run(model: &Model, cache: &mut KvCache, tokens: &[u32]) -> Result<()> {
    for tokens in tokens.chunks(512) {
        model.forward(&mut [SequenceInput { tokens, cache, logits: LogitsFor::None, adapter: None }])?;
    }
    Ok(())
}

fn position() -> Row {
    let row = Row::new("inference/kv_position", Work::none(), |bench| {
        let model = cache_model(bench)?;
        let mut cache = model.new_cache();
        run(&model, &mut cache, &[0; 100])?;
        Ok(Call::new(move || -> Result<usize> { Ok(black_box(&cache).len()) }))
    });
    // Starting the program differs by more from run to run.
    row.without_instructions()
}

/// One position's keys and values of some layers, and where they go: what a forward pass does, layer by layer.
struct Update {
    key: Tensor,
    value: Tensor,
    chunks: Vec<KvChunk>,
    position: usize,
}

impl Update {
    fn new(bench: &Bench, layers: usize) -> Result<Self> {
        let chunks = (0..layers).map(|_| chunk(bench)).collect::<Result<_>>()?;
        let tensor = || bench.random((1, KV_HEADS, HEAD_DIM));
        Ok(Self { key: tensor()?, value: tensor()?, chunks, position: 0 })
    }

    fn run(&mut self) -> Result<()> {
        self.position = (self.position + 1) % CHUNK;
        write(&self.chunks, &self.key, &self.value, self.position)
    }
}

fn chunk(bench: &Bench) -> Result<KvChunk> {
    let zeros = || bench.zeros((CHUNK, KV_HEADS, HEAD_DIM));
    Ok(KvChunk { keys: zeros()?, values: zeros()? })
}

fn write(chunks: &[KvChunk], key: &Tensor, value: &Tensor, position: usize) -> Result<()> {
    for chunk in chunks {
        chunk.write(position, key, value, 0..1)?;
    }
    Ok(())
}

/// Bytes of keys and values of so many positions in so many layers.
fn bytes(layers: usize, positions: usize) -> usize {
    layers * positions * 2 * KV_HEADS * HEAD_DIM * 4
}

fn update(id: &str, layers: usize) -> Row {
    // Each call writes to the next position: a chunk of every layer is the working set. From two tensors into two.
    let work = Work::copies(2 * bytes(layers, 1), bytes(layers, CHUNK)).locks(4 * layers);
    Row::new(id, work, move |bench| {
        let mut update = Update::new(bench, layers)?;
        Ok(Call::new(move || update.run()))
    })
}

/// A new cache of 24 layers, filled token by token to half of a length.
fn fill(length: usize) -> Row {
    let id = format!("kv_cache_scaling/full_sequence_seq_{length}");
    let positions = length / 2;
    let row =
        Row::new(id, Work::bytes(2 * bytes(LAYERS, positions)).yields("tokens", positions), move |bench| {
            let device = bench.device().clone();
            let Update { key, value, .. } = Update::new(bench, 0)?;
            Ok(Call::new(move || -> Result<Vec<KvChunk>> {
                let mut filled = Vec::new();
                for first in (0..positions).step_by(CHUNK) {
                    let zeros = || Tensor::zeros((CHUNK, KV_HEADS, HEAD_DIM), DType::F32, &device);
                    let chunk = || -> Result<KvChunk> { Ok(KvChunk { keys: zeros()?, values: zeros()? }) };
                    let chunks = (0..LAYERS).map(|_| chunk()).collect::<Result<Vec<_>>>()?;
                    for position in first..positions.min(first + CHUNK) {
                        write(&chunks, &key, &value, position - first)?;
                    }
                    filled.extend(chunks);
                }
                Ok(filled)
            }))
        });
    row.without_instructions()
}

/// The cache's part of one token in 24 layers, then top-p over 32,000 logits.
fn generation_cycle() -> Row {
    const VOCABULARY: usize = 32_000;
    Row::new("inference/generation_cycle", Work::bytes(2 * bytes(LAYERS, 1) + 4 * VOCABULARY), |bench| {
        let params =
            SamplingParams { temperature: 1.0, top_p: 0.9, seed: Some(0), ..SamplingParams::default() };
        let state = (Update::new(bench, LAYERS)?, Draw::new(params, sampling::flat(VOCABULARY))?);
        Ok(Call::prepared(
            state,
            |(_, draw)| draw.prepare(),
            |(update, draw)| {
                update.run()?;
                draw.sample()
            },
        ))
    })
}

/// The 512th token of Qwen2.5-0.5B: one row after 511 cached ones, or all 512 rows again.
fn token_512(id: &str, with_cache: bool) -> Row {
    let (cached, new) = if with_cache { (511, 1) } else { (0, 512) };
    let work = Work { units: Vec::new(), ..qwen::forward(1, new, cached) }.yields("tokens", 1);
    let row = Row::new(id, work, move |bench| {
        let mut decoder = Decoder::new(bench.qwen()?, SamplingParams::default())?;
        let tokens = qwen::tokens(512);
        if cached > 0 {
            decoder.forward(&tokens[..cached])?;
        }
        let prepare = move |decoder: &mut Decoder| decoder.back_to(cached);
        Ok(Call::prepared(decoder, prepare, move |decoder| {
            decoder.forward(&tokens[cached..])?;
            decoder.sample()
        }))
    });
    row.slow()
}

/// 512 tokens of the model inside the program, greedily; without the cache, each of them runs all before it again.
fn generate_512(id: &str, with_cache: bool) -> Row {
    let row = Row::new(id, Work::none().yields("tokens", 512), move |bench| {
        let model = Arc::clone(tiny::language_model(bench)?.model());
        let mut decoder = Decoder::new(model, SamplingParams::default())?;
        Ok(Call::new(move || -> Result<u32> {
            decoder.back_to(0)?;
            let mut tokens = vec![1];
            while tokens.len() <= 512 {
                let first = if with_cache { tokens.len() - 1 } else { 0 };
                decoder.back_to(first)?;
                decoder.forward(&tokens[first..])?;
                tokens.push(decoder.sample()?);
            }
            Ok(tokens[512])
        }))
    });
    row.slow()
}
