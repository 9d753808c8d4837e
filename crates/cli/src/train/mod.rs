//! `metal-candle train`: fine-tune a model, or train one from random weights.

mod dry_run;
mod file;
pub(crate) mod next;
pub(crate) mod progress;
mod resolve;
mod schedule;
mod settings;
pub(crate) mod sparkline;

use std::{ops::ControlFlow, path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use metal_candle::{
    LanguageModel,
    device::DType,
    train::{
        Run, RunLength, TrainConfig,
        events::{Observers, Stopped, TrainEvent},
        report::{self, History, METRICS_FILE, MetricsFile, TensorBoard},
        saved_config,
    },
};

pub(crate) use self::settings::{Bytes, RecomputeName};
use self::{progress::Progress, settings::Settings};
use crate::{
    args::{ComputeArgs, SourceArgs},
    console::Console,
    interrupt::{self, Interrupted},
    model,
};

pub(crate) const EXAMPLES: &str = "\
Each line of the data is one JSON object: {\"text\": …}, {\"prompt\": …, \"completion\": …} or
{\"messages\": [{\"role\": …, \"content\": …}, …]}. Of conversations, all that the assistant says
counts in the loss. Flags and YAML keys that mlx_lm.lora has mean the same here; an unknown key
is an error. --iters, --steps-per-eval, --save-every and the like count batches.

The output folder holds the adapter (or the model), checkpoints/, metrics.jsonl, report.html and
loss.png. Ctrl-C ends the step, saves, and says how to go on. A run that was killed goes on from
its last checkpoint with --resume; on the CPU its result is the same, byte for byte.

Examples:
  metal-candle train -m Qwen/Qwen2.5-0.5B-Instruct --data ./data --iters 600
  metal-candle train -m ./model --data chats.jsonl --rank 16 --alpha 32 --targets q_proj,v_proj \\
      --learning-rate 2e-4 --schedule cosine --warmup-steps 20 --epochs 3 --batching packed
  metal-candle train -c lora_config.yaml --dry-run     settings, tokens, memory and time; then stop
  metal-candle train --resume --adapter-path adapters  go on with all settings of that run
  metal-candle train -m ./model --data ./data --fine-tune-type full --learning-rate 1e-5
  metal-candle train --from-config ./shape --data ./data --learning-rate 1e-3 --epochs 1";

/// Settings that a run may be resumed with although all others come from its folder.
const WITH_RESUME: [&str; 5] = ["adapter_path", "iters", "epochs", "steps_per_report", "report_to"];

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    /// Read settings from this YAML file; flags stand above it
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Go on with the run in --adapter-path. Its settings need not be repeated; --iters or --epochs may be larger
    #[arg(long)]
    resume: bool,

    /// Say what the run would do, how much memory and time it would take, and stop
    #[arg(long)]
    dry_run: bool,

    /// With --dry-run: as JSON
    #[arg(long, requires = "dry_run")]
    json: bool,

    /// Use only files that are already here; never ask the hub
    #[arg(long)]
    offline: bool,

    #[command(flatten)]
    settings: Settings,

    #[command(flatten)]
    compute: ComputeArgs,
}

pub(crate) fn run(args: &TrainArgs, console: &Console) -> Result<()> {
    let file = args.config.as_deref().map(file::read).transpose()?.unwrap_or_default();
    let settings = args.settings.or(&file)?;
    let config = if args.resume && settings.model.is_none() && settings.from_config.is_none() {
        config_of_run(&settings)?
    } else {
        resolve::config(&settings)?
    };
    config.check()?;
    let language_model = load(args, &config, console)?;
    if args.dry_run {
        return dry_run::run(&language_model, &config, args.json, console);
    }
    let report_every = settings.steps_per_report.unwrap_or(10) / config.accumulation as u64;
    let tensorboard = settings.report_to.is_some();
    let make = if args.resume { Run::resume } else { Run::new };
    let bar = console.bytes_bar("reading data", 0);
    let run = make(language_model, config, &mut |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let run = run?;
    let folder = run.config().output.clone();
    let history = watch(run, report_every, tensorboard, console)?;
    for command in next::next_commands(&history, &folder) {
        console.note(format_args!("{}:\n  {}", command.purpose, command.command));
    }
    console.print(&format!("{}\n", folder.display()))
}

/// Trains, shows how it goes, and writes all that is to be written beside.
pub(crate) fn watch(
    mut run: Run,
    report_every: u64,
    tensorboard: bool,
    console: &Console,
) -> Result<History> {
    let folder = run.config().output.clone();
    let metrics = folder.join(METRICS_FILE);
    let metrics = match run.steps().0 {
        0 => MetricsFile::create(&metrics)?,
        step => MetricsFile::resume(&metrics, step)?,
    };
    let interrupted = interrupt::Answer::begin();
    let outcome = {
        let mut observers = Observers::default();
        observers.push(metrics);
        if tensorboard {
            observers.push(TensorBoard::create(&folder)?);
        }
        observers.push(Progress::new(console, report_every));
        observers.push(|_: &TrainEvent| {
            Ok(if interrupted.stop_asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        });
        run.run(&mut observers)
    };
    drop(interrupted);
    let history = History::read(&folder.join(METRICS_FILE))?;
    let next = next::next_commands(&history, &folder);
    let written = report::write_history(&history, &folder, &next)?;
    let finished = outcome?;
    if finished.stopped == Stopped::Interrupted {
        console.say(format_args!(
            "saved; go on with: metal-candle train --resume --adapter-path {}\n",
            next::quoted(&folder.display().to_string())
        ));
        return Err(Interrupted.into());
    }
    console.note(format_args!("report: {}", written.page.display()));
    Ok(history)
}

/// The config that a run was saved with; it may be made longer.
fn config_of_run(settings: &Settings) -> Result<TrainConfig> {
    let others: Vec<String> =
        settings.given().into_iter().filter(|name| !WITH_RESUME.contains(&name.as_str())).collect();
    if !others.is_empty() {
        bail!(
            "--resume takes all settings from the run's folder; leave out {}, or give the whole command with the model",
            others.join(", ")
        );
    }
    let folder = settings.adapter_path.clone().unwrap_or_else(|| "adapters".into());
    let mut config = saved_config(&folder)?;
    config.output = folder;
    match (settings.iters, settings.epochs) {
        (Some(iters), _) => config.length = RunLength::Steps(iters / config.accumulation as u64),
        (None, Some(epochs)) => config.length = RunLength::Epochs(epochs),
        (None, None) => {}
    }
    Ok(config)
}

fn load(args: &TrainArgs, config: &TrainConfig, console: &Console) -> Result<Arc<LanguageModel>> {
    if !config.from_scratch {
        let source = SourceArgs { model: config.model.clone(), offline: args.offline };
        return Ok(model::load(&source, &args.compute, console)?.0);
    }
    let device = model::open_device(&args.compute, console)?;
    let dtype = args.compute.dtype.explicit().unwrap_or(DType::F32);
    let folder = PathBuf::from(&config.model);
    let ignored = &args.compute.ignore_config_key;
    let made = LanguageModel::untrained(&folder, dtype, &device, config.seed, ignored);
    Ok(Arc::new(made.with_context(|| format!("cannot make a model of {}", folder.display()))?))
}
