//! `metal-candle quickstart`: from a model to an adapter that changes how it speaks, without a network.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use metal_candle::{
    lora::LoraConfig,
    train::{
        DataConfig, Decay, EvaluationConfig, OptimizerConfig, Run, RunLength, SampleConfig, Schedule,
        TrainConfig, events::Speaker, report::History,
    },
};

use crate::{
    args::{ComputeArgs, SourceArgs},
    console::Console,
    model, tiny,
    train::{self, next::quoted},
};

pub(crate) const EXAMPLES: &str = "\
A very small model that is part of the program learns to answer as an old captain does. The folder then
holds the adapter, the data that it learned from (data/), checkpoints/, metrics.jsonl, report.html
and loss.png.

Examples:
  metal-candle quickstart
  metal-candle quickstart --output ./captain --steps 300";

/// Answered before and after.
const PROMPTS: [&str; 3] = ["Where does a fox live?", "How can I make tea?", "Tell me a story about a fox."];
/// Conversations at the end of the data that are only measured on.
const HELD_BACK: usize = 16;

#[derive(Debug, Args)]
pub(crate) struct QuickstartArgs {
    /// The folder for all that the run writes [default: quickstart, or quickstart-2 where that is taken, and so on]
    #[arg(long, short, value_name = "FOLDER")]
    output: Option<PathBuf>,

    /// Updates of the adapter
    #[arg(long, value_name = "N", default_value_t = 150, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,

    #[command(flatten)]
    compute: ComputeArgs,
}

pub(crate) fn run(args: &QuickstartArgs, console: &Console) -> Result<()> {
    let output = args.output.clone().unwrap_or_else(free_folder);
    let source = SourceArgs { model: tiny::NAME.to_owned(), offline: true };
    let (language_model, _) = model::load(&source, &args.compute, console)?;
    let data = output.join("data");
    if data.exists() {
        bail!("{} is already there; name another folder with --output, or none", data.display());
    }
    write_data(&data).with_context(|| format!("cannot write the data to {}", data.display()))?;
    let config = config(data, output.clone(), args.steps);
    let run = Run::new(language_model, config, &mut |_, _| ())?;
    console.note(format_args!("teaching the model `{}` to answer like an old captain", tiny::NAME));
    let history = train::watch(run, 25, false, console)?;
    console.print(&before_and_after(&history))?;
    console.print(&next(&output))
}

/// The first of `quickstart`, `quickstart-2`, … that is not there.
fn free_folder() -> PathBuf {
    let names = (2..).map(|number| PathBuf::from(format!("quickstart-{number}")));
    let mut names = [PathBuf::from("quickstart")].into_iter().chain(names);
    names.find(|folder| !folder.exists()).unwrap_or_else(|| PathBuf::from("quickstart"))
}

fn write_data(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let lines: Vec<&[u8]> = tiny::CAPTAIN.split_inclusive(|&byte| byte == b'\n').collect();
    let (train, valid) = lines.split_at(lines.len() - HELD_BACK);
    fs::write(folder.join("train.jsonl"), train.concat())?;
    Ok(fs::write(folder.join("valid.jsonl"), valid.concat())?)
}

fn config(data: PathBuf, output: PathBuf, steps: u64) -> TrainConfig {
    TrainConfig {
        model: tiny::NAME.to_owned(),
        lora: LoraConfig { targets: vec!["all-linear".to_owned()], ..LoraConfig::default() },
        data: DataConfig { path: data, batch_size: 8, max_seq_length: 256, ..DataConfig::default() },
        optimizer: OptimizerConfig { max_gradient_norm: Some(1.0), ..OptimizerConfig::default() },
        schedule: Schedule {
            warmup_steps: (steps / 2).min(5),
            decay: Decay::Cosine { to: 0.0, steps: None },
            ..Schedule::constant(1.5e-3)
        },
        length: RunLength::Steps(steps),
        evaluation: EvaluationConfig { every: None, ..EvaluationConfig::default() },
        samples: SampleConfig {
            prompts: PROMPTS.map(str::to_owned).to_vec(),
            max_tokens: 160,
            ..SampleConfig::default()
        },
        save_every: None,
        output,
        ..TrainConfig::default()
    }
}

/// What the model said to each prompt, without the adapter and with it.
fn before_and_after(history: &History) -> String {
    let mut text = String::new();
    for prompt in PROMPTS {
        let said = |speaker| {
            let mut samples =
                history.samples.iter().filter(|sample| sample.prompt == prompt && sample.speaker == speaker);
            samples.next_back().map_or("", |sample| sample.text.trim())
        };
        let (before, after) = (said(Speaker::Base), said(Speaker::Trained));
        text += &format!("\n{prompt}\n");
        text += &format!("  before: {}\n  after:  {}\n", indented(before), indented(after));
    }
    text
}

/// Further paragraphs stand below the first.
fn indented(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    lines.join("\n          ")
}

/// Commands that can be pasted, whether the program is installed or lies where cargo has put it.
fn next(output: &Path) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "metal-candle".to_owned());
    let program = quoted(&program);
    let path = |path: &Path| quoted(&path.display().to_string());
    let (adapter, data, merged) = (path(output), path(&output.join("data")), path(&output.join("merged")));
    let commands = [
        ("Talk to the captain", format!("chat -m tiny --adapter {adapter}")),
        (
            "Teach it your own lines: change those in the data folder, or name another one, and a model from the hub",
            format!(
                "train -m tiny --data {data} --adapter-path adapters --alpha 16 --iters 200 --learning-rate 1e-3"
            ),
        ),
        (
            "Make one model of model and adapter",
            format!("adapter merge -m tiny --adapter {adapter} --output {merged}"),
        ),
    ];
    let mut text = "\nNext:\n".to_owned();
    for (purpose, command) in commands {
        text += &format!("  # {purpose}\n  {program} {command}\n");
    }
    text
}
