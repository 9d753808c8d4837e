//! Everything that decides a run. The same settings, model and data give the same result.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{
    OptimizerConfig, Schedule, TrainError,
    data::{BadLinePolicy, Batching, LoaderOptions},
};
use crate::{
    Result,
    data::{CompletionForm, EncoderOptions, Supervise},
    lora::{Format, LoraConfig},
};

/// Settings of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// The model's name, as adapters keep it.
    pub model: String,
    /// What is trained.
    pub method: Training,
    /// The weights begin at random, not as the model's files have them.
    pub from_scratch: bool,
    /// The adapter, unless all weights are trained.
    pub lora: LoraConfig,
    /// An adapter's folder, or the file in it, whose values are the first ones. Its shape counts then, not that of `lora`.
    pub initial_adapter: Option<PathBuf>,
    /// What it learns from.
    pub data: DataConfig,
    /// How parameters follow their gradients.
    pub optimizer: OptimizerConfig,
    /// How far.
    pub schedule: Schedule,
    /// How long.
    pub length: RunLength,
    /// Batches whose gradients are summed for one step. Each token of the step weighs the same, whichever batch it is in.
    pub accumulation: usize,
    /// Spreads the target over all tokens, from 0 to 1.
    pub label_smoothing: f32,
    /// Weight of the squared logarithm of the softmax's denominator.
    pub z_loss: f32,
    /// Decides the first values, the order of the data and the dropout.
    pub seed: u64,
    /// What is computed again in the backward pass, to save memory.
    pub recompute: RecomputeChoice,
    /// Measuring while training.
    pub evaluation: EvaluationConfig,
    /// Texts that show what was learned.
    pub samples: SampleConfig,
    /// Steps between two checkpoints; without, only the end is saved.
    pub save_every: Option<u64>,
    /// How many checkpoints are kept, the best one not counted; without, all.
    pub keep_last: Option<usize>,
    /// The folder for all that the run writes.
    pub output: PathBuf,
    /// How adapters are written.
    pub format: AdapterFormat,
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Training {
    /// Small matrices beside the frozen weights: LoRA, or DoRA, as the adapter's settings say.
    #[default]
    Adapter,
    /// All weights.
    Full,
}

/// What is computed again in the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecomputeChoice {
    /// As little as the memory that is free allows, by the forecast; where that is unknown, nothing.
    #[default]
    Auto,
    /// As little as so many bytes allow, by the forecast.
    Within(u64),
    /// Nothing.
    None,
    /// The MLPs of this many blocks.
    Mlps(usize),
    /// This many blocks.
    Blocks(usize),
    /// All blocks.
    All,
}

/// How long a run takes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunLength {
    /// So many updates.
    Steps(u64),
    /// So many times through the data.
    Epochs(f64),
}

/// How adapters are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdapterFormat {
    /// As PEFT writes them.
    #[default]
    Peft,
    /// As mlx-lm writes them.
    Mlx,
}

impl From<AdapterFormat> for Format {
    fn from(format: AdapterFormat) -> Self {
        match format {
            AdapterFormat::Peft => Self::Peft,
            AdapterFormat::Mlx => Self::Mlx,
        }
    }
}

/// The data, and how it becomes batches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// A JSONL file, or a folder with `train.jsonl` and perhaps `valid.jsonl` and `test.jsonl`.
    pub path: PathBuf,
    /// Lines that cannot be used are counted and passed over.
    pub skip_bad: bool,
    /// Which tokens count.
    pub supervise: Supervise,
    /// What `prompt` and `completion` are.
    pub completion: CompletionForm,
    /// Put the end-of-sequence token after texts.
    pub append_end: bool,
    /// How examples share a batch.
    pub batching: Batching,
    /// Examples in a batch, or bins.
    pub batch_size: usize,
    /// Longer examples are cut to so many tokens.
    pub max_seq_length: usize,
    /// A new order in every epoch.
    pub shuffle: bool,
    /// Examples that are looked at together.
    pub window: usize,
}

/// Measuring on `valid.jsonl` and `test.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvaluationConfig {
    /// Steps between two measurements; one comes first and one last. Without, there are only these two.
    pub every: Option<u64>,
    /// Batches of each; without, the whole file.
    pub batches: Option<u64>,
    /// The run ends when so many measurements in a row were no better than the best before.
    pub patience: Option<u64>,
    /// Measure on `test.jsonl` at the end.
    pub test: bool,
    /// Batches of that; without, the whole file.
    pub test_batches: Option<u64>,
}

/// Prompts that are continued before, while and after training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleConfig {
    /// The prompts: messages of a user for a model with a chat template, else texts.
    pub prompts: Vec<String>,
    /// They are texts, chat template or not.
    pub raw: bool,
    /// Steps between two rounds; without, only before and after.
    pub every: Option<u64>,
    /// The most tokens of each.
    pub max_tokens: usize,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            model: String::new(),
            method: Training::default(),
            from_scratch: false,
            lora: LoraConfig::default(),
            initial_adapter: None,
            data: DataConfig::default(),
            optimizer: OptimizerConfig::default(),
            schedule: Schedule::default(),
            length: RunLength::default(),
            accumulation: 1,
            label_smoothing: 0.0,
            z_loss: 0.0,
            seed: 0,
            recompute: RecomputeChoice::default(),
            evaluation: EvaluationConfig::default(),
            samples: SampleConfig::default(),
            save_every: Some(100),
            keep_last: Some(3),
            output: PathBuf::from("adapters"),
            format: AdapterFormat::default(),
        }
    }
}

impl Default for RunLength {
    fn default() -> Self {
        Self::Steps(1000)
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        let (loader, encoder) = (LoaderOptions::default(), EncoderOptions::default());
        Self {
            path: PathBuf::from("data"),
            skip_bad: false,
            supervise: encoder.supervise,
            completion: encoder.completion,
            append_end: encoder.append_end,
            batching: loader.batching,
            batch_size: loader.batch_size,
            max_seq_length: loader.max_seq_length,
            shuffle: loader.shuffle,
            window: loader.window,
        }
    }
}

impl Default for EvaluationConfig {
    fn default() -> Self {
        Self { every: Some(200), batches: Some(25), patience: None, test: false, test_batches: Some(500) }
    }
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self { prompts: Vec::new(), raw: false, every: None, max_tokens: 64 }
    }
}

impl TrainConfig {
    /// Whether every setting is in its range.
    pub fn check(&self) -> Result<()> {
        self.schedule.check()?;
        self.optimizer.check()?;
        if self.method == Training::Adapter {
            self.lora.check()?;
        }
        let bad = |name, value: String, expected| Err(TrainError::Setting { name, value, expected }.into());
        match self.length {
            RunLength::Steps(0) => return bad("length", "0 steps".to_owned(), "it must be at least 1"),
            RunLength::Epochs(epochs) if !(epochs > 0.0 && epochs.is_finite()) => {
                return bad("length", format!("{epochs} epochs"), "it must be more than 0");
            }
            _ => {}
        }
        let counts = [
            ("accumulation", Some(self.accumulation as u64)),
            ("save_every", self.save_every),
            ("keep_last", self.keep_last.map(|count| count as u64)),
            ("evaluation.every", self.evaluation.every),
            ("evaluation.batches", self.evaluation.batches),
            ("evaluation.test_batches", self.evaluation.test_batches),
            ("evaluation.patience", self.evaluation.patience),
            ("samples.every", self.samples.every),
            ("samples.max_tokens", Some(self.samples.max_tokens as u64)),
        ];
        if let Some((name, _)) = counts.into_iter().find(|(_, count)| *count == Some(0)) {
            return bad(name, "0".to_owned(), "it must be at least 1");
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return bad("label_smoothing", self.label_smoothing.to_string(), "it must be from 0 to below 1");
        }
        if !(self.z_loss >= 0.0 && self.z_loss.is_finite()) {
            return bad("z_loss", self.z_loss.to_string(), "it must be a number from 0 on");
        }
        Ok(())
    }

    /// How the data becomes tokens.
    pub(super) fn encoder_options(&self) -> EncoderOptions {
        let DataConfig { supervise, completion, append_end, .. } = self.data;
        EncoderOptions { supervise, completion, append_end }
    }

    /// How tokens become batches to learn from.
    pub(super) fn loader_options(&self) -> LoaderOptions {
        let DataConfig { batching, batch_size, max_seq_length, shuffle, window, .. } = self.data;
        LoaderOptions { batching, batch_size, max_seq_length, shuffle, window, seed: self.seed }
    }

    /// What is done with bad lines.
    pub(super) fn bad_line_policy(&self) -> BadLinePolicy {
        if self.data.skip_bad { BadLinePolicy::Skip } else { BadLinePolicy::Refuse }
    }
}
