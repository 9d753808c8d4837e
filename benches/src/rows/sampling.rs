//! What choosing one token costs, by sampler, vocabulary and shape of the distribution.
//!
//! The sampler alone is timed: the model would write fresh logits each time, so copying them does not count.

use anyhow::Result;
use metal_candle::generate::sampler::{Sampler, SamplingParams, TokenHistory};

use crate::{Call, Row, Work};

const VOCABULARIES: [usize; 3] = [32_000, 128_256, 151_936];
/// The vocabulary that all samplers are measured with, not only the common ones.
const LARGEST: usize = 151_936;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for vocabulary in VOCABULARIES {
        for (shape, logits) in [("flat", flat as fn(usize) -> Vec<f32>), ("peaked", peaked)] {
            let others = if vocabulary == LARGEST { others() } else { Vec::new() };
            for (name, params) in common().into_iter().chain(others) {
                let id = format!("sampling_vocab_sweep/{name}/{shape}/{vocabulary}");
                rows.push(row(id, params, vocabulary, logits));
            }
        }
    }
    let params = SamplingParams { temperature: 1.0, top_p: 0.9, seed: Some(0), ..SamplingParams::default() };
    rows.push(row("inference/sampling".to_owned(), params, 32_000, flat));
    rows
}

/// A sampler, its logits, and a copy of them that a draw may change.
pub(super) struct Draw {
    sampler: Sampler,
    history: TokenHistory,
    logits: Vec<f32>,
    scratch: Vec<f32>,
}

impl Draw {
    pub(super) fn new(params: SamplingParams, logits: Vec<f32>) -> Result<Self> {
        let sampler = Sampler::new(params, logits.len())?;
        let prompt: Vec<u32> = (0..1024).map(|index| index * 7 % 5000).collect();
        let history = sampler.history(&prompt);
        Ok(Self { sampler, history, scratch: logits.clone(), logits })
    }

    pub(super) fn prepare(&mut self) -> Result<()> {
        self.scratch.copy_from_slice(&self.logits);
        Ok(())
    }

    pub(super) fn sample(&mut self) -> Result<u32> {
        Ok(self.sampler.sample(&mut self.scratch, &self.history)?.id)
    }
}

fn row(id: String, params: SamplingParams, vocabulary: usize, logits: fn(usize) -> Vec<f32>) -> Row {
    let work = Work::bytes(4 * vocabulary).yields("logits", vocabulary);
    let row = Row::new(id, work, move |_| {
        let draw = Draw::new(params.clone(), logits(vocabulary))?;
        Ok(Call::prepared(draw, Draw::prepare, Draw::sample))
    });
    row.on_processor("the sampler works on the host's copy of the logits")
}

fn drawn() -> SamplingParams {
    SamplingParams { temperature: 0.7, seed: Some(0), ..SamplingParams::default() }
}

fn common() -> Vec<(&'static str, SamplingParams)> {
    vec![
        ("greedy", SamplingParams::default()),
        ("temperature_0.7", drawn()),
        ("top_k_10", SamplingParams { top_k: 10, ..drawn() }),
        ("top_k_40", SamplingParams { top_k: 40, ..drawn() }),
        ("top_k_50", SamplingParams { top_k: 50, ..drawn() }),
        ("top_p_0.9", SamplingParams { top_p: 0.9, ..drawn() }),
        ("top_p_0.95", SamplingParams { top_p: 0.95, ..drawn() }),
    ]
}

fn others() -> Vec<(&'static str, SamplingParams)> {
    let greedy = SamplingParams::default();
    vec![
        ("min_p_0.05", SamplingParams { min_p: 0.05, ..drawn() }),
        ("typical_p_0.9", SamplingParams { typical_p: 0.9, ..drawn() }),
        ("xtc", SamplingParams { xtc_probability: 1.0, ..drawn() }),
        ("top_k_50_top_p_0.9", SamplingParams { top_k: 50, top_p: 0.9, ..drawn() }),
        ("top_k_1000", SamplingParams { top_k: 1000, ..drawn() }),
        ("top_k_5000", SamplingParams { top_k: 5000, ..drawn() }),
        ("top_k_50000", SamplingParams { top_k: 50_000, ..drawn() }),
        ("top_p_0.9_xtc", SamplingParams { top_p: 0.9, xtc_probability: 1.0, ..drawn() }),
        ("top_p_0.9_min_p_0.05", SamplingParams { top_p: 0.9, min_p: 0.05, ..drawn() }),
        ("typical_p_0.9_top_p_0.9", SamplingParams { typical_p: 0.9, top_p: 0.9, ..drawn() }),
        ("typical_p_0.9_xtc", SamplingParams { typical_p: 0.9, xtc_probability: 1.0, ..drawn() }),
        ("all_filters", everything()),
        ("greedy_logprobs_20", SamplingParams { logprobs: Some(20), ..greedy.clone() }),
        ("greedy_penalties", SamplingParams { repetition_penalty: 1.1, repetition_context: None, ..greedy }),
    ]
}

/// Every filter and penalty at once, each of which leaves the next one much to do.
fn everything() -> SamplingParams {
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
        ..drawn()
    }
}

/// Bell-shaped logits of standard deviation 1: almost every token has a share.
pub(super) fn flat(vocabulary: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    // The sum of twelve uniform numbers has variance 1.
    (0..vocabulary).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
}

/// As a trained model's: a few tokens stand far above the bell.
fn peaked(vocabulary: usize) -> Vec<f32> {
    let mut logits = flat(vocabulary);
    logits.iter_mut().for_each(|logit| *logit *= 2.0);
    for rank in 0..20 {
        logits[(rank * 7919 + 13) % vocabulary] = 22.0 - rank as f32 * 0.7;
    }
    logits
}
