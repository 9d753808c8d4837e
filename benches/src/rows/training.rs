//! LoRA training of Qwen2.5-0.5B: rank 8, alpha 16, q and v of all layers, AdamW, one sequence of 512 tokens.

use anyhow::{Result, ensure};
use metal_candle::{
    lora::{Adapter, LoraConfig},
    train::{Rows, Trainer, TrainerOptions, Update},
};

use crate::{Bench, Call, Row, Work, qwen};

const ROWS: usize = 512;

pub(super) fn rows() -> Vec<Row> {
    let row = |name: &str, work: Work, part: fn(&mut Training) -> Result<()>| {
        let row = Row::new(format!("lora_training/{name}"), work, move |bench| {
            let mut training = Training::new(bench)?;
            Ok(Call::new(move || part(&mut training)))
        });
        row.slow()
    };
    let optimizer = Row::new("lora_training/optimizer", Work::none(), |bench| {
        let mut training = Training::new(bench)?;
        training.accumulate()?;
        Ok(Call::new(move || training.update()))
    });
    vec![
        row("step", qwen::loss_and_gradients(ROWS), Training::step),
        // No gradients are asked for, so nothing is kept for them.
        row("forward", qwen::loss(ROWS), Training::loss),
        row("forward_backward", qwen::loss_and_gradients(ROWS), Training::accumulate),
        optimizer.without_instructions(),
    ]
}

/// A trainer and its batch.
pub(super) struct Training {
    trainer: Trainer,
    tokens: Vec<u32>,
    targets: Vec<u32>,
    number: u32,
}

impl Training {
    pub(super) fn new(bench: &Bench) -> Result<Self> {
        let model = bench.qwen()?;
        let adapter = Adapter::initial(&LoraConfig::default(), &model, 1)?;
        // Weight decay 0.01 is the default.
        let trainer = Trainer::lora(model, &adapter, TrainerOptions::default())?;
        let tokens = qwen::tokens(ROWS + 1);
        Ok(Self { trainer, targets: tokens[1..].to_vec(), tokens: tokens[..ROWS].to_vec(), number: 0 })
    }

    pub(super) fn step(&mut self) -> Result<()> {
        self.accumulate()?;
        self.update()
    }

    fn loss(&mut self) -> Result<()> {
        let loss = self.trainer.loss(&rows_of(&self.tokens, &self.targets))?;
        ensure!(loss.sum.is_finite(), "the loss is {}", loss.sum);
        Ok(())
    }

    fn accumulate(&mut self) -> Result<()> {
        self.number += 1;
        let rows = rows_of(&self.tokens, &self.targets);
        let loss = self.trainer.accumulate(&rows, u64::from(self.number))?;
        ensure!(loss.sum.is_finite(), "the loss is {}", loss.sum);
        Ok(())
    }

    fn update(&mut self) -> Result<()> {
        let update = Update { number: self.number, learning_rate: 1e-4, targets: ROWS };
        let updated = self.trainer.update(&update)?;
        ensure!(updated.gradient_norm.is_finite(), "the gradient is {}", updated.gradient_norm);
        Ok(())
    }
}

fn rows_of<'a>(tokens: &'a [u32], targets: &'a [u32]) -> Rows<'a> {
    Rows { tokens, targets, starts: &[0, ROWS as u32] }
}
