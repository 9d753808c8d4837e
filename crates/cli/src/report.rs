//! `metal-candle report`: the page and the picture of a training run.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use metal_candle::train::report::{self, History, METRICS_FILE, Written};
use serde_json::json;

use crate::{
    console::Console,
    train::{
        next::next_commands,
        sparkline::{sparkline, unicode_terminal},
    },
};

pub(crate) const EXAMPLES: &str = "\
Reads metrics.jsonl, which every training run writes as it goes on, and writes report.html (curves,
samples before and after, settings) and loss.png beside it. The run may still be going on.

Examples:
  metal-candle report runs/letters
  metal-candle report runs/letters --json";

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// The folder of the run
    #[arg(value_name = "RUN_FOLDER")]
    folder: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &ReportArgs, console: &Console) -> Result<()> {
    let folder = &args.folder;
    let context = || format!("cannot make the report of {}", folder.display());
    let history = History::read(&folder.join(METRICS_FILE)).with_context(context)?;
    let written =
        report::write_history(&history, folder, &next_commands(&history, folder)).with_context(context)?;
    let Written { page, picture } = &written;
    if args.json {
        let best = history.best();
        return console.print_json(&json!({
            "page": page,
            "picture": picture,
            "steps": history.steps.last().map_or(0, |step| step.step),
            "finished": history.finished.is_some(),
            "best": best.map(|best| json!({ "step": best.step, "loss": best.loss })),
        }));
    }
    if !history.steps.is_empty() {
        console.note(format_args!("loss {}", sparkline(&history.losses(), unicode_terminal())));
    }
    console.print(&format!("{}\n{}\n", page.display(), picture.display()))
}
