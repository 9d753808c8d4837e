//! The settings of `train`, as the command line and the file give them: each may be left out. [`resolve`](super::resolve)
//! makes a run of them.
//!
//! Names and meanings that mlx_lm.lora has are the same here.

use std::{collections::BTreeMap, path::PathBuf, str::FromStr};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use metal_candle::train::RecomputeChoice;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Settings by the names of flags and keys.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// A model folder, or a name on the Hugging Face hub
    #[arg(long, short, value_name = "FOLDER|ORG/NAME[@REVISION]", help_heading = "Model and data")]
    pub(crate) model: Option<String>,
    /// A JSONL file, or a folder with train.jsonl and perhaps valid.jsonl and test.jsonl [default: data]
    #[arg(long, value_name = "FILE|FOLDER", help_heading = "Model and data")]
    pub(crate) data: Option<PathBuf>,
    /// Train from random weights: all weights of the shape that this folder's config.json describes, with the folder's tokenizer
    #[arg(long, value_name = "FOLDER", help_heading = "Model and data")]
    pub(crate) from_config: Option<PathBuf>,
    /// Count and pass over lines that cannot be used, instead of refusing the file
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Model and data")]
    pub(crate) skip_bad: Option<bool>,
    /// What is trained [default: lora]
    #[arg(long, value_name = "TYPE", help_heading = "Adapter")]
    pub(crate) fine_tune_type: Option<FineTuneType>,
    /// Modules to adapt, such as q_proj,v_proj or self_attn.q_proj; all-linear for every one [default: all-linear]
    #[arg(long, value_delimiter = ',', value_name = "NAME,..", help_heading = "Adapter")]
    pub(crate) targets: Option<Vec<String>>,
    /// Adapt only the last N blocks; -1 for all [default: 16]
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Adapter")]
    pub(crate) num_layers: Option<i64>,
    /// The rank, r [default: 8]
    #[arg(long, value_name = "R", help_heading = "Adapter")]
    pub(crate) rank: Option<usize>,
    /// Scale by alpha / r (with --rslora by alpha / root of r)
    #[arg(long, value_name = "ALPHA", conflicts_with = "scale", help_heading = "Adapter")]
    pub(crate) alpha: Option<f32>,
    /// Scale by this number itself, as mlx-lm does [default: 20]
    #[arg(long, value_name = "SCALE", help_heading = "Adapter")]
    pub(crate) scale: Option<f32>,
    /// Rank-stabilised scaling (rsLoRA); needs --alpha
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Adapter")]
    pub(crate) rslora: Option<bool>,
    /// The share of the adapters' inputs that is left out at random [default: 0]
    #[arg(long, value_name = "SHARE", help_heading = "Adapter")]
    pub(crate) dropout: Option<f32>,
    /// The first values [default: kaiming]
    #[arg(long, value_name = "INIT", help_heading = "Adapter")]
    pub(crate) init: Option<Init>,
    /// The learning rate of B over that of A (LoRA+) [default: 1]
    #[arg(long, value_name = "RATIO", help_heading = "Adapter")]
    pub(crate) lora_plus_ratio: Option<f32>,
    /// Begin with the values of this adapter: its folder, or the file in it
    #[arg(long, value_name = "PATH", help_heading = "Adapter")]
    pub(crate) resume_adapter_file: Option<PathBuf>,
    /// Other ranks for some modules.
    #[arg(skip)]
    pub(crate) rank_pattern: Option<BTreeMap<String, usize>>,
    /// Other alphas for some modules.
    #[arg(skip)]
    pub(crate) alpha_pattern: Option<BTreeMap<String, f32>>,
    /// mlx-lm's names for what decides an adapter.
    #[arg(skip)]
    pub(crate) lora_parameters: Option<LoraParameters>,
    /// The optimizer [default: adam]
    #[arg(long, value_name = "NAME", help_heading = "Optimizer")]
    pub(crate) optimizer: Option<OptimizerName>,
    /// Weight decay [default: 0.01 for adamw, else 0]
    #[arg(long, value_name = "DECAY", help_heading = "Optimizer")]
    pub(crate) weight_decay: Option<f32>,
    /// Shorten longer gradients to this length
    #[arg(long, value_name = "NORM", help_heading = "Optimizer")]
    pub(crate) max_grad_norm: Option<f32>,
    /// The share of the target that is spread over all tokens [default: 0]
    #[arg(long, value_name = "SHARE", help_heading = "Optimizer")]
    pub(crate) label_smoothing: Option<f32>,
    /// The weight of the squared logarithm of the softmax's denominator [default: 0]
    #[arg(long, value_name = "WEIGHT", help_heading = "Optimizer")]
    pub(crate) z_loss: Option<f32>,
    /// Further settings by the optimizer's name.
    #[arg(skip)]
    pub(crate) optimizer_config: Option<BTreeMap<String, OptimizerSettings>>,
    /// The highest learning rate [default: 1e-5]
    #[arg(long, value_name = "RATE", help_heading = "Learning-rate schedule")]
    pub(crate) learning_rate: Option<f64>,
    /// How it falls; stable: only at the end (WSD) [default: constant]
    #[arg(long, value_name = "FORM", help_heading = "Learning-rate schedule")]
    pub(crate) schedule: Option<ScheduleName>,
    /// Steps of a linear rise at the start [default: 0]
    #[arg(long, value_name = "N", help_heading = "Learning-rate schedule")]
    pub(crate) warmup_steps: Option<u64>,
    /// Steps of the fall [default: the rest of the run; stable needs it]
    #[arg(long, value_name = "N", help_heading = "Learning-rate schedule")]
    pub(crate) decay_steps: Option<u64>,
    /// Where the fall ends [default: 0]
    #[arg(long, value_name = "RATE", help_heading = "Learning-rate schedule")]
    pub(crate) min_learning_rate: Option<f64>,
    /// A schedule in mlx-lm's terms.
    #[arg(skip)]
    pub(crate) lr_schedule: Option<LrSchedule>,
    /// Batches to train on; with --grad-accumulation-steps, several make one step [default: 1000]
    #[arg(long, value_name = "N", help_heading = "Length and batches")]
    pub(crate) iters: Option<u64>,
    /// Times through the data, instead of --iters
    #[arg(long, value_name = "N", conflicts_with = "iters", help_heading = "Length and batches")]
    pub(crate) epochs: Option<f64>,
    /// Examples in a batch; with --batching packed, bins of --max-seq-length [default: 4]
    #[arg(long, value_name = "N", help_heading = "Length and batches")]
    pub(crate) batch_size: Option<usize>,
    /// Batches of one step; each token weighs the same [default: 1]
    #[arg(long, value_name = "N", help_heading = "Length and batches")]
    pub(crate) grad_accumulation_steps: Option<usize>,
    /// Cut longer examples to this many tokens [default: 2048]
    #[arg(long, value_name = "N", help_heading = "Length and batches")]
    pub(crate) max_seq_length: Option<usize>,
    /// How examples share a batch [default: concatenated]
    #[arg(long, value_name = "FORM", help_heading = "Length and batches")]
    pub(crate) batching: Option<BatchingName>,
    /// Examples that are looked at together, to pack them or to find those of similar length [default: 1024]
    #[arg(long, value_name = "N", help_heading = "Length and batches")]
    pub(crate) window: Option<usize>,
    /// A new order in every epoch [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Length and batches")]
    pub(crate) shuffle: Option<bool>,
    /// Decides first values, order and dropout [default: 0]
    #[arg(long, value_name = "N", help_heading = "Length and batches")]
    pub(crate) seed: Option<u64>,
    /// Which tokens count [default: assistant]
    #[arg(long, value_name = "WHAT", help_heading = "Supervision")]
    pub(crate) supervise: Option<SuperviseName>,
    /// As in mlx-lm: only the assistant's last turn counts, or the completion; false: every token
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Supervision")]
    pub(crate) mask_prompt: Option<bool>,
    /// What `prompt` and `completion` are: one text, or messages for the chat template [default: plain]
    #[arg(long, value_name = "FORM", help_heading = "Supervision")]
    pub(crate) completion: Option<CompletionName>,
    /// End texts and completions with the end-of-sequence token [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Supervision")]
    pub(crate) append_eos: Option<bool>,
    /// Blocks that are computed again in the backward pass: auto, none, all, a number, or mlps:NUMBER for their MLPs only
    /// [default: auto]
    #[arg(long, value_name = "BLOCKS", help_heading = "Memory")]
    pub(crate) recompute: Option<RecomputeName>,
    /// As in mlx-lm: recompute all blocks; false: none
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Memory")]
    pub(crate) grad_checkpoint: Option<bool>,
    /// Recompute as little as this much memory allows, such as 6GB, by the forecast
    #[arg(long, value_name = "BYTES", help_heading = "Memory")]
    pub(crate) memory_budget: Option<Bytes>,
    /// Batches between two measurements on valid.jsonl [default: 200]
    #[arg(long, value_name = "N", help_heading = "Evaluation, samples and reports")]
    pub(crate) steps_per_eval: Option<u64>,
    /// Batches of each; -1 for all [default: 25]
    #[arg(
        long,
        value_name = "N",
        allow_negative_numbers = true,
        help_heading = "Evaluation, samples and reports"
    )]
    pub(crate) val_batches: Option<i64>,
    /// Stop when so many measurements in a row were no better
    #[arg(long, value_name = "N", help_heading = "Evaluation, samples and reports")]
    pub(crate) patience: Option<u64>,
    /// Measure on test.jsonl at the end
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Evaluation, samples and reports")]
    pub(crate) test: Option<bool>,
    /// Batches of that; -1 for all [default: 500]
    #[arg(
        long,
        value_name = "N",
        allow_negative_numbers = true,
        help_heading = "Evaluation, samples and reports"
    )]
    pub(crate) test_batches: Option<i64>,
    /// Continue this prompt before and after training (repeatable)
    #[arg(long, value_name = "PROMPT", help_heading = "Evaluation, samples and reports")]
    pub(crate) sample: Option<Vec<String>>,
    /// And after every N batches
    #[arg(long, value_name = "N", help_heading = "Evaluation, samples and reports")]
    pub(crate) sample_every: Option<u64>,
    /// At most this many tokens each [default: 64]
    #[arg(long, value_name = "N", help_heading = "Evaluation, samples and reports")]
    pub(crate) sample_tokens: Option<usize>,
    /// Prompts are plain text, chat template or not
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Evaluation, samples and reports")]
    pub(crate) sample_raw: Option<bool>,
    /// Batches between two lines of progress, where it is not shown on a terminal [default: 10]
    #[arg(long, value_name = "N", help_heading = "Evaluation, samples and reports")]
    pub(crate) steps_per_report: Option<u64>,
    /// tensorboard: also write TensorBoard's files
    #[arg(long, value_name = "WHERE", help_heading = "Evaluation, samples and reports")]
    pub(crate) report_to: Option<String>,
    /// The folder for the result, checkpoints, metrics and report [default: adapters]
    #[arg(long, visible_alias = "output", value_name = "FOLDER", help_heading = "Results")]
    pub(crate) adapter_path: Option<PathBuf>,
    /// How adapters are written [default: peft]
    #[arg(long, value_name = "FORMAT", help_heading = "Results")]
    pub(crate) format: Option<FormatName>,
    /// Batches between two checkpoints [default: 100]
    #[arg(long, value_name = "N", help_heading = "Results")]
    pub(crate) save_every: Option<u64>,
    /// Keep only so many checkpoints, and the best [default: 3]
    #[arg(long, value_name = "N", help_heading = "Results")]
    pub(crate) keep_last: Option<usize>,
    /// Always on here.
    #[arg(skip)]
    pub(crate) train: Option<bool>,
    /// The name of another file, which mlx-lm ignores.
    #[arg(skip)]
    pub(crate) config: Option<String>,
    /// Not supported.
    #[arg(skip)]
    pub(crate) hf_dataset: Option<Value>,
    /// Not supported.
    #[arg(skip)]
    pub(crate) wandb: Option<String>,
    /// Not supported.
    #[arg(skip)]
    pub(crate) project_name: Option<String>,
}

/// `lora_parameters` of mlx-lm.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LoraParameters {
    pub(crate) keys: Option<Vec<String>>,
    pub(crate) rank: Option<usize>,
    pub(crate) scale: Option<f32>,
    pub(crate) alpha: Option<f32>,
    pub(crate) dropout: Option<f32>,
}

/// `lr_schedule` of mlx-lm.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LrSchedule {
    pub(crate) name: String,
    pub(crate) warmup: Option<u64>,
    pub(crate) warmup_init: Option<f64>,
    pub(crate) arguments: Vec<f64>,
}

/// An entry of `optimizer_config` of mlx-lm.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct OptimizerSettings {
    pub(crate) betas: Option<[f32; 2]>,
    pub(crate) eps: Option<f32>,
    pub(crate) weight_decay: Option<f32>,
    pub(crate) bias_correction: Option<bool>,
    pub(crate) momentum: Option<f32>,
    pub(crate) dampening: Option<f32>,
    pub(crate) nesterov: Option<bool>,
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident),+ $(,)? })+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub(crate) enum $name { $($(#[$variant_doc])* $variant),+ }
    )+};
}

names! {
    FineTuneType {
        /// Small matrices beside frozen weights
        Lora,
        /// The same with trained magnitudes
        Dora,
        /// All weights, in f32
        Full,
    }
    Init {
        /// A uniform, B zero
        Kaiming,
        /// A normal, B zero
        Gaussian,
        /// The largest singular vectors of the weights
        Pissa,
    }
    OptimizerName { Adam, Adamw, Sgd, Lion, Muon, Adafactor }
    ScheduleName { Constant, Linear, Cosine, Stable }
    BatchingName {
        /// One after another, without padding
        Concatenated,
        /// Bins of --max-seq-length, filled with whole examples
        Packed,
        /// Examples of similar length, padded
        Padded,
    }
    SuperviseName {
        /// Every turn of the assistant
        Assistant,
        /// Its last turn
        LastTurn,
        /// What follows the last message of the user
        Completion,
        /// Every token
        All,
    }
    CompletionName { Plain, Chat }
    FormatName { Peft, Mlx }
}

/// `auto`, `none`, `all`, `mlps:` and a number, or a number of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "String")]
pub(crate) enum RecomputeName {
    Auto,
    None,
    All,
    Mlps(usize),
    Blocks(usize),
}

/// An amount of memory, such as `6GB`, `512MiB` or a number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "u64")]
pub(crate) struct Bytes(pub(crate) u64);

impl Settings {
    /// These, and those of `others` where there is none here.
    pub(crate) fn or(&self, others: &Self) -> Result<Self> {
        let [Value::Object(mut merged), Value::Object(own)] =
            [serde_json::to_value(others)?, serde_json::to_value(self)?]
        else {
            unreachable!("settings are an object")
        };
        merged.extend(own.into_iter().filter(|(_, value)| !value.is_null()));
        serde_json::from_value(Value::Object(merged)).context("the settings cannot be put together")
    }

    /// The names of those that are given.
    pub(crate) fn given(&self) -> Vec<String> {
        let Ok(Value::Object(all)) = serde_json::to_value(self) else { return Vec::new() };
        all.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| name).collect()
    }

    /// All names; for those with fixed names inside, these.
    pub(crate) fn known() -> BTreeMap<String, Vec<String>> {
        let keys = |value: serde_json::Result<Value>| match value {
            Ok(Value::Object(fields)) => fields.into_iter().map(|(name, _)| name).collect(),
            _ => Vec::new(),
        };
        let mut known: BTreeMap<String, Vec<String>> =
            keys(serde_json::to_value(Self::default())).into_iter().map(|name| (name, Vec::new())).collect();
        known.insert("lora_parameters".to_owned(), keys(serde_json::to_value(LoraParameters::default())));
        known.insert("lr_schedule".to_owned(), keys(serde_json::to_value(LrSchedule::default())));
        known
    }
}

impl FromStr for RecomputeName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            "all" => Ok(Self::All),
            number => match number.strip_prefix("mlps:") {
                Some(number) => number.parse().map(Self::Mlps),
                None => number.parse().map(Self::Blocks),
            }
            .map_err(|_| "use auto, none, all, a number of blocks, or mlps: and a number of MLPs".to_owned()),
        }
    }
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text} is no amount of memory; use 6GB, 512MiB or a number of bytes");
        let digits = text.find(|character: char| !(character.is_ascii_digit() || character == '.'));
        let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
        let factor = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "kb" => 1e3,
            "mb" => 1e6,
            "gb" | "g" => 1e9,
            "kib" => 1024.0,
            "mib" => 1_048_576.0,
            "gib" => 1_073_741_824.0,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        Ok(Self((number * factor) as u64))
    }
}

impl TryFrom<Value> for RecomputeName {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        plain(&value).parse()
    }
}

impl TryFrom<Value> for Bytes {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        plain(&value).parse()
    }
}

impl From<RecomputeName> for String {
    fn from(name: RecomputeName) -> Self {
        match name {
            RecomputeName::Auto => "auto".to_owned(),
            RecomputeName::None => "none".to_owned(),
            RecomputeName::All => "all".to_owned(),
            RecomputeName::Mlps(count) => format!("mlps:{count}"),
            RecomputeName::Blocks(count) => count.to_string(),
        }
    }
}

impl From<RecomputeName> for RecomputeChoice {
    fn from(name: RecomputeName) -> Self {
        match name {
            RecomputeName::Auto => Self::Auto,
            RecomputeName::None => Self::None,
            RecomputeName::All => Self::All,
            RecomputeName::Mlps(count) => Self::Mlps(count),
            RecomputeName::Blocks(count) => Self::Blocks(count),
        }
    }
}

impl From<Bytes> for u64 {
    fn from(bytes: Bytes) -> Self {
        bytes.0
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn flags_stand_above_the_file() {
        let file = Settings { iters: Some(5), seed: Some(1), ..Settings::default() };
        let flags =
            Settings { seed: Some(2), recompute: Some(RecomputeName::Blocks(3)), ..Settings::default() };
        let both = flags.or(&file).unwrap();
        assert_eq!(
            (both.iters, both.seed, both.recompute),
            (Some(5), Some(2), Some(RecomputeName::Blocks(3)))
        );
        assert_eq!(flags.given(), ["seed", "recompute"]);
    }

    #[test]
    fn amounts_of_memory_have_units() {
        for (text, bytes) in
            [("512", 512), ("6GB", 6_000_000_000), ("1.5GiB", 1_610_612_736), ("2 MB", 2_000_000)]
        {
            assert_eq!(text.parse(), Ok(Bytes(bytes)));
        }
        for text in ["", "GB", "6 apples", "1.2.3GB"] {
            assert!(text.parse::<Bytes>().unwrap_err().contains("512MiB"), "{text}");
        }
    }
}
