//! `metal-candle eval`: loss and perplexity on a data file.

use std::{
    fs::File,
    io::{BufRead, BufReader},
};

use anyhow::{Context as _, Result};
use clap::Args;
use metal_candle::eval::{Report, evaluate};
use serde_json::json;

use crate::{
    adapters::AdapterArgs,
    args::{ComputeArgs, SourceArgs},
    console::Console,
    model,
};

pub(crate) const EXAMPLES: &str = "\
The file holds one JSON object per line, in one of these forms:
  {\"text\": \"…\"}                             every token after the first counts
  {\"prompt\": \"…\", \"completion\": \"…\"}        the tokens of the completion count
  {\"messages\": [{\"role\": …, \"content\": …}]}  what the assistant says counts; needs a chat template
The loss is the mean of -log p over the counted tokens of the whole file, the perplexity is e
to the loss.

Examples:
  metal-candle eval -m Qwen/Qwen2.5-0.5B --data valid.jsonl
  metal-candle eval -m ./model --data valid.jsonl --json
  metal-candle eval -m ./model --adapter ./adapter --data valid.jsonl
  head -n 20 valid.jsonl | metal-candle eval -m ./model --data -";

#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    source: SourceArgs,

    /// The data file, JSON lines; - reads stdin
    #[arg(long, value_name = "FILE")]
    data: String,

    /// Cut longer lines to this many tokens [default: what the model's context holds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    max_tokens: Option<u32>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    adapters: AdapterArgs,

    #[command(flatten)]
    compute: ComputeArgs,
}

pub(crate) fn run(args: &EvalArgs, console: &Console) -> Result<()> {
    // Before the model: a mistake here should not cost a minute of loading.
    let (data, lines) = open(&args.data)?;
    args.adapters.check()?;
    let (model, _) = model::load(&args.source, &args.compute, console)?;
    let adapter = args.adapters.load(model.model(), console)?;
    let bar = console.count_bar("evaluating", lines);
    let limit = args.max_tokens.map(|limit| limit as usize);
    let mut progress = |done| bar.set_position(done as u64);
    let report = evaluate(&model, &args.data, data, adapter.as_deref(), limit, &mut progress);
    bar.finish_and_clear();
    let report = report.with_context(|| format!("cannot evaluate {}", args.data))?;
    if report.truncated > 0 {
        console.note(format_args!(
            "{} of {} lines were too long and were cut",
            report.truncated, report.examples
        ));
    }
    if args.json { print_json(&report, console) } else { print_table(&report, console) }
}

/// The data, and how many lines it has as far as that can be told.
fn open(path: &str) -> Result<(Box<dyn BufRead>, u64)> {
    if path == "-" {
        return Ok((Box::new(std::io::stdin().lock()), 0));
    }
    let open = || File::open(path).map(BufReader::new).with_context(|| format!("cannot open {path}"));
    // A line that cannot be read is reported by its number when its turn comes.
    let lines = open()?.split(b'\n').take_while(Result::is_ok).count();
    Ok((Box::new(open()?), lines as u64))
}

fn print_json(report: &Report, console: &Console) -> Result<()> {
    console.print_json(&json!({
        "loss": report.loss,
        "perplexity": report.perplexity,
        "tokens": report.tokens,
        "examples": report.examples,
        "truncated": report.truncated,
    }))
}

fn print_table(report: &Report, console: &Console) -> Result<()> {
    let Report { loss, perplexity, tokens, examples, .. } = report;
    console.print(&format!(
        "loss        {loss:.6}\nperplexity  {perplexity:.4}\ntokens      {tokens}\nexamples    {examples}\n"
    ))
}
