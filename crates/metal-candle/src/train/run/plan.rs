//! What a run would do, without doing it.

use std::time::Instant;

use serde::Serialize;

use super::{
    Run,
    setup::{self, DataFiles},
    state::RunState,
};
use crate::{
    LanguageModel, Result,
    lora::Method,
    train::{
        Forecast, Recompute, TrainConfig, Training,
        data::{Loader, survey},
    },
};

/// A run before it begins.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Steps in all.
    pub steps: u64,
    /// Times through the data.
    pub epochs: f64,
    /// Examples of an epoch that have something to learn.
    pub examples: u64,
    /// Their tokens, before any are cut off.
    pub tokens: u64,
    /// Tokens whose prediction counts.
    pub targets: u64,
    /// Examples that are cut, and the tokens that they lose.
    pub cut: (u64, u64),
    /// Examples that are left out because nothing in them counts.
    pub left_out: u64,
    /// Bad lines that are passed over.
    pub bad_lines: u64,
    /// Batches of an epoch.
    pub batches: u64,
    /// Rows of the largest batch.
    pub rows: usize,
    /// The share of the rows that is no padding.
    pub fill: f64,
    /// Numbers of the model, and how many are trained.
    pub parameters: (u64, u64),
    /// What runs again on the way back.
    pub recompute: Recompute,
    /// Bytes at the highest point.
    pub memory: Forecast,
    /// What the steps would take, from the speed of one batch.
    pub seconds: f64,
}

impl Plan {
    /// Reads and tokenises the data once. `progress` is told lines done and lines in all.
    pub fn new(
        language_model: &LanguageModel,
        config: &TrainConfig,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        config.check()?;
        if config.method == Training::Adapter {
            config.lora.sites(language_model.model().spec())?;
        }
        let files = DataFiles::open(config, &mut |_, _| ())?;
        let (encoder, state) = setup::fresh(language_model, config, &files)?;
        let found = survey(setup::loader(config, &files, &encoder)?, progress)?;
        let rows = found.most_rows as u64;
        let mut load = setup::workload(language_model, config, rows, found.most_targets as u64);
        load.recompute = config.recompute.resolve(&load, language_model.model().device());
        let memory = Forecast::new(&load);
        let rows_per_second =
            speed(language_model, config, setup::loader(config, &files, &encoder)?, &state)?;
        let parameters = language_model.model().spec().parameters();
        let batches = (state.total_steps * config.accumulation as u64) as f64;
        Ok(Self {
            steps: state.total_steps,
            epochs: batches / found.batches as f64,
            examples: found.tally.examples - found.tally.left_out(),
            tokens: found.tally.tokens,
            targets: found.tally.counted,
            cut: (found.tally.cut, found.tally.tokens_lost),
            left_out: found.tally.left_out(),
            bad_lines: files.train.bad_lines().count + found.tally.bad.count,
            batches: found.batches,
            rows: found.most_rows,
            fill: found.fill(),
            parameters: (parameters, memory.trained_numbers),
            recompute: load.recompute.within(load.spec.layers.len()),
            memory,
            seconds: found.rows as f64 / found.batches as f64 * batches / rows_per_second,
        })
    }
}

/// Rows per second of the second batch: the first one also makes room in memory.
fn speed(
    language_model: &LanguageModel,
    config: &TrainConfig,
    loader: Loader,
    state: &RunState,
) -> Result<f64> {
    let mut trainer = setup::trainer_for(language_model, config, state)?;
    let mut found = 0.0;
    for (draw, batch) in loader.take(2).enumerate() {
        let batch = batch?;
        let began = Instant::now();
        trainer.accumulate(&super::rows(&batch), draw as u64)?;
        found = batch.rows() as f64 / began.elapsed().as_secs_f64();
    }
    Ok(found)
}

impl Run {
    /// The memory that the largest possible batch would take.
    pub fn forecast(&self) -> Forecast {
        let rows = (self.config.data.batch_size * self.config.data.max_seq_length) as u64;
        let mut load = setup::workload(&self.language_model, &self.config, rows, rows);
        load.recompute = self.config.recompute.resolve(&load, self.language_model.model().device());
        Forecast::new(&load)
    }
}

/// The method for people.
pub(super) fn method_name(config: &TrainConfig) -> String {
    if config.method == Training::Full {
        let from = if config.from_scratch { " from random weights" } else { "" };
        return format!("all weights{from}");
    }
    let name = match config.lora.method {
        Method::Lora => "LoRA",
        Method::Dora => "DoRA",
    };
    format!("{name}, rank {}", config.lora.rank)
}
