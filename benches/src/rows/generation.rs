//! Generating with Qwen2.5-0.5B: random weights in bf16, prompts of 128 tokens.

use std::sync::Arc;

use anyhow::Result;
use metal_candle::{
    cache::KvCache,
    generate::sampler::{Sampler, SamplingParams, TokenHistory},
    model::{LogitsFor, Model, SequenceInput},
};

use super::sampling::Draw;
use crate::{Call, Row, Work, qwen};

const PROMPT: usize = 128;
const NEW: usize = 100;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = vec![forward_128(), first_token(), per_token(), share_forward(), share_sample()];
    rows.extend([1, 4, 8, 16].map(batch_decode));
    rows
}

/// A model, one sequence, and how its tokens are chosen.
pub(super) struct Decoder {
    model: Arc<Model>,
    cache: KvCache,
    sampler: Sampler,
    history: TokenHistory,
    /// Of the last forward's last row.
    logits: Vec<f32>,
}

impl Decoder {
    pub(super) fn new(model: Arc<Model>, params: SamplingParams) -> Result<Self> {
        let sampler = Sampler::new(params, model.spec().vocab_size)?;
        let history = sampler.history(&[0]);
        Ok(Self { cache: model.new_cache(), sampler, history, logits: Vec::new(), model })
    }

    /// Runs tokens; brings the logits of the last one to the host.
    pub(super) fn forward(&mut self, tokens: &[u32]) -> Result<()> {
        let input = SequenceInput { tokens, cache: &mut self.cache, logits: LogitsFor::Last, adapter: None };
        self.logits = self.model.forward(&mut [input])?.flatten_all()?.to_vec1()?;
        Ok(())
    }

    pub(super) fn sample(&mut self) -> Result<u32> {
        Ok(self.sampler.sample(&mut self.logits, &self.history)?.id)
    }

    /// Forgets what follows `length` cached positions.
    pub(super) fn back_to(&mut self, length: usize) -> Result<()> {
        Ok(self.cache.truncate(length)?)
    }
}

fn params() -> SamplingParams {
    SamplingParams { temperature: 0.7, top_p: 0.9, seed: Some(0), ..SamplingParams::default() }
}

/// The pass alone: the logits stay where they are.
fn forward_128() -> Row {
    let row = Row::new("inference/forward_seq_128", qwen::forward(1, PROMPT, 0), |bench| {
        let (model, tokens) = (bench.qwen()?, qwen::tokens(PROMPT));
        Ok(Call::new(move || {
            let mut cache = model.new_cache();
            let logits = LogitsFor::Last;
            model.forward(&mut [SequenceInput { tokens: &tokens, cache: &mut cache, logits, adapter: None }])
        }))
    });
    row.slow()
}

/// From the prompt to the first token.
fn first_token() -> Row {
    let row = Row::new("generation/first_token", qwen::forward(1, PROMPT, 0), |bench| {
        let (decoder, tokens) = (Decoder::new(bench.qwen()?, params())?, qwen::tokens(PROMPT));
        Ok(Call::prepared(
            decoder,
            |decoder| decoder.back_to(0),
            move |decoder| {
                decoder.forward(&tokens)?;
                decoder.sample()
            },
        ))
    });
    row.slow()
}

/// The next token, of the 100 that follow the prompt.
fn per_token() -> Row {
    let row = Row::new("generation/per_token", qwen::forward(1, 1, PROMPT + NEW / 2), |bench| {
        let mut decoder = Decoder::new(bench.qwen()?, params())?;
        decoder.forward(&qwen::tokens(PROMPT))?;
        let token = decoder.sample()?;
        Ok(Call::prepared(
            (decoder, token),
            |(decoder, _)| if decoder.cache.len() >= PROMPT + NEW { decoder.back_to(PROMPT) } else { Ok(()) },
            |(decoder, token)| {
                decoder.forward(&[*token])?;
                *token = decoder.sample()?;
                Ok(())
            },
        ))
    });
    row.slow()
}

/// A token's forward pass alone, to compare `sampling_share/sample` with.
fn share_forward() -> Row {
    let row = Row::new("sampling_share/forward", qwen::forward(1, 1, PROMPT), |bench| {
        let mut decoder = Decoder::new(bench.qwen()?, params())?;
        decoder.forward(&qwen::tokens(PROMPT))?;
        Ok(Call::prepared(decoder, |decoder| decoder.back_to(PROMPT), |decoder| decoder.forward(&[1])))
    });
    row.slow()
}

/// Choosing a token by the logits of that pass.
fn share_sample() -> Row {
    let work = Work::bytes(4 * qwen::VOCABULARY).yields("logits", qwen::VOCABULARY);
    let row = Row::new("sampling_share/sample", work, |bench| {
        let mut decoder = Decoder::new(bench.qwen()?, params())?;
        decoder.forward(&qwen::tokens(PROMPT))?;
        let draw = Draw::new(params(), decoder.logits)?;
        Ok(Call::prepared(draw, Draw::prepare, Draw::sample))
    });
    row.without_instructions()
}

/// One token for each of several sequences, all after prompts of their own.
fn batch_decode(sequences: usize) -> Row {
    let id = format!("batch_decode/batch/{sequences}");
    let row = Row::new(id, qwen::forward(sequences, 1, PROMPT), move |bench| {
        let model = bench.qwen()?;
        // No forks of one cache: they would share the memory that is to be read.
        let mut caches = Vec::new();
        for _ in 0..sequences {
            let mut own = Decoder::new(Arc::clone(&model), params())?;
            own.forward(&qwen::tokens(PROMPT))?;
            caches.push(own.cache);
        }
        let tokens = qwen::tokens(sequences);
        Ok(Call::prepared(
            caches,
            |caches| caches.iter_mut().try_for_each(|cache| Ok(cache.truncate(PROMPT)?)),
            move |caches| {
                let inputs = caches.iter_mut().zip(tokens.chunks(1));
                let inputs = inputs.map(|(cache, tokens)| SequenceInput {
                    tokens,
                    cache,
                    logits: LogitsFor::Last,
                    adapter: None,
                });
                Ok(model.forward(&mut inputs.collect::<Vec<_>>())?.flatten_all()?.to_vec1::<f32>()?)
            },
        ))
    });
    row.slow()
}
