//! The command line: the commands, and the flags that several of them share.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use metal_candle::device::{DType, DeviceChoice};

use crate::{adapter, bench, chat, doctor, eval, generate, prompt, quickstart, report, train};

const EXAMPLES: &str = "\
First steps:
  metal-candle quickstart                              teach a small model to answer like an old captain
  metal-candle doctor                                  what this machine and this build can do
  metal-candle bench --shape qwen2.5-0.5b              how fast it is, without downloading a model
  metal-candle generate -m Qwen/Qwen2.5-0.5B-Instruct --prompt 'Why is the sky blue?'
  metal-candle chat -m Qwen/Qwen2.5-0.5B-Instruct      a conversation

A model is a folder in the Hugging Face format, a name on the hub (org/name or org/name@revision),
or tiny: the small model that is part of this program.
Run `metal-candle COMMAND --help` for the flags and examples of a command.

Exit codes: 0 done, 1 failed (the reason is on stderr), 2 wrong usage, 130 interrupted by Ctrl-C.";

/// Generate text, chat, evaluate and measure language models on the machine in front of you
#[derive(Debug, Parser)]
#[command(name = "metal-candle", version, propagate_version = true, after_help = EXAMPLES)]
pub(crate) struct CommandLine {
    /// Say only what was asked for: no progress, no notes, no statistics
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,

    /// Record what runs and when, and write it to this file for ui.perfetto.dev or chrome://tracing
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Teach the small model inside this program, in a minute and without a network
    #[command(after_help = quickstart::EXAMPLES)]
    Quickstart(quickstart::QuickstartArgs),
    /// Continue a prompt, or answer it
    #[command(after_help = generate::EXAMPLES)]
    Generate(generate::GenerateArgs),
    /// Hold a conversation
    #[command(after_help = chat::EXAMPLES)]
    Chat(chat::ChatArgs),
    /// Show what a model's chat template makes of a conversation
    #[command(after_help = prompt::EXAMPLES)]
    Prompt(prompt::PromptArgs),
    /// Measure loss and perplexity on a data file
    #[command(after_help = eval::EXAMPLES)]
    Eval(eval::EvalArgs),
    /// Fine-tune a model: LoRA, DoRA or all weights; or train one from random weights
    #[command(after_help = train::EXAMPLES)]
    Train(Box<train::TrainArgs>),
    /// Look at adapters, convert them, merge them into a model
    #[command(after_help = adapter::EXAMPLES)]
    Adapter(adapter::AdapterCommand),
    /// Make the page and the picture of a training run
    #[command(after_help = report::EXAMPLES)]
    Report(report::ReportArgs),
    /// Measure the speed of prefill and decode
    #[command(after_help = bench::EXAMPLES)]
    Bench(bench::BenchArgs),
    /// Show devices, features, caches and versions
    #[command(after_help = doctor::EXAMPLES)]
    Doctor(doctor::DoctorArgs),
}

/// Which model.
#[derive(Debug, Args)]
pub(crate) struct SourceArgs {
    /// A model folder, a name on the Hugging Face hub, or tiny for the small model inside this program
    #[arg(long, short, value_name = "FOLDER|ORG/NAME[@REVISION]|tiny")]
    pub(crate) model: String,

    /// Use only files that are already here; never ask the hub
    #[arg(long)]
    pub(crate) offline: bool,
}

/// Where and how to compute.
#[derive(Debug, Args)]
#[command(next_help_heading = "Computing")]
pub(crate) struct ComputeArgs {
    /// The device: auto, cpu, cuda, cuda:N, metal or metal:N; auto says which one it took
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub(crate) device: DeviceChoice,

    /// The dtype of the weights in memory; auto keeps that of the file
    #[arg(long, value_name = "DTYPE", default_value = "auto")]
    pub(crate) dtype: DTypeChoice,

    /// Threads of the CPU kernels [default: all that the process may use]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,

    /// Accept this unknown key of config.json, which you know to be harmless (repeatable)
    #[arg(long, value_name = "KEY")]
    pub(crate) ignore_config_key: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DTypeChoice {
    Auto,
    F32,
    Bf16,
    F16,
}

impl DTypeChoice {
    /// The dtype, unless it is left to the model.
    pub(crate) fn explicit(self) -> Option<DType> {
        match self {
            Self::Auto => None,
            Self::F32 => Some(DType::F32),
            Self::Bf16 => Some(DType::BF16),
            Self::F16 => Some(DType::F16),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::CommandLine;

    #[test]
    fn the_definition_holds_together() {
        CommandLine::command().debug_assert();
    }
}
