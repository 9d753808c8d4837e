//! `cargo xtask bench`: measure, compare, report.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};

mod baseline;
mod claims;
mod compare;
mod criterion;
mod detector;
mod environment;
mod html;
mod instructions;
mod markdown;
mod peers;
mod process;
mod programs;
mod progress;
mod prove;
mod published;
mod random;
mod result;
mod roofline;
mod session;
mod statistics;
mod summary;
mod units;

use self::{
    detector::Rules,
    process::{Pace, Setup},
    programs::Programs,
    result::{Row, RunResult, SCHEMA},
    roofline::Limits,
    session::{Measured, Selection, Session},
};
use crate::files;

const EXAMPLES: &str = "\
Each group of rows runs in several fresh processes, in a new order each time; a row's figure is the median over
processes. Everything goes to bench-results/DATE: result.json for programs, report.html for people.

Examples:
  cargo xtask bench                                         everything, on the processor
  cargo xtask bench --programs micro --quick                single operations, a first look
  cargo xtask bench --save-baseline main                    keep figures and programs...
  cargo xtask bench --baseline main                         ...and run both in turns after a change
  cargo xtask bench --device metal --peers --install-peers  on a Mac's GPU, beside MLX and llama.cpp
  cargo xtask bench instructions                            instruction counts against benches/instructions.tsv
  cargo xtask bench report                                  BENCHMARKS.md from benches/results
  cargo xtask bench prove                                   shows that a planted slowdown is found

Exit status: 1 where a row became slower than the baseline, 2 where something failed.";

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    command: Option<BenchCommand>,

    #[command(flatten)]
    measure: MeasureArgs,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Count instructions of single operations under callgrind and compare with benches/instructions.tsv
    Instructions(instructions::InstructionsArgs),
    /// Make BENCHMARKS.md from the results in benches/results
    Report(markdown::ReportArgs),
    /// Show on this machine that a planted slowdown is found and that no change raises no alarm
    Prove(prove::ProveArgs),
}

#[derive(Debug, Clone, Args)]
struct MeasureArgs {
    /// Processes of each group
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    repeat: u16,

    #[command(flatten)]
    programs: ProgramsArgs,

    /// Only these groups: the part of a row's name before the first slash
    #[arg(long, value_name = "GROUP", value_delimiter = ',')]
    groups: Vec<String>,

    /// Only rows whose name contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,

    /// Shorter processes: a first look
    #[arg(long)]
    quick: bool,

    /// Keep other programs off the cores while a bench runs (Linux, as root)
    #[arg(long)]
    realtime: bool,

    /// Keep the result and the bench programs under this name
    #[arg(long, value_name = "NAME")]
    save_baseline: Option<String>,

    /// Compare with what was kept under this name
    #[arg(long, value_name = "NAME")]
    baseline: Option<String>,

    /// Slower by less than this share is no regression
    #[arg(long, value_name = "SHARE", default_value_t = 0.02)]
    tolerance: f64,

    /// Seconds that the confirmation of one suspect or claim may take
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    patience: u64,

    /// Also run other programs on the same shapes (benches/peers)
    #[arg(long)]
    peers: bool,

    /// Install them first, into environments of their own
    #[arg(long, requires = "peers")]
    install_peers: bool,

    /// Rounds of each comparison with a peer
    #[arg(long, value_name = "N", requires = "peers")]
    peer_rounds: Option<usize>,

    /// Take what benches/peers/suite.py --json wrote earlier
    #[arg(long, value_name = "FILE", conflicts_with = "peers")]
    peers_from: Option<PathBuf>,

    /// Where to put the result [default: bench-results/DATE]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,

    /// Also write the result without its single batches, for benches/results
    #[arg(long, value_name = "FILE")]
    keep: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
struct ProgramsArgs {
    /// The device: cpu, cuda:N, metal
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: String,

    /// Only these bench programs, such as micro
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    programs: Vec<String>,

    /// A folder with the bench programs, instead of building them
    #[arg(long, value_name = "FOLDER")]
    prebuilt: Option<PathBuf>,
}

pub(crate) fn run(args: BenchArgs) -> Result<ExitCode> {
    let workspace = files::workspace();
    match args.command {
        None => run_measurement(&workspace, &args.measure),
        Some(BenchCommand::Instructions(args)) => instructions::run(&workspace, &args),
        Some(BenchCommand::Report(args)) => markdown::run(&workspace, &args),
        Some(BenchCommand::Prove(args)) => prove::run(&workspace, &args),
    }
}

fn run_measurement(workspace: &Path, args: &MeasureArgs) -> Result<ExitCode> {
    ensure!((0.0..1.0).contains(&args.tolerance), "--tolerance is a share, such as 0.02");
    let results = workspace.join("bench-results");
    let setup = Setup {
        device: args.programs.device.clone(),
        pace: if args.quick { Pace::QUICK } else { Pace::NORMAL },
        realtime: args.realtime,
        slower: std::env::var("METAL_CANDLE_BENCH_SLOWER").ok(),
    };
    setup.check_realtime()?;
    let environment = environment::snapshot(workspace, &args.programs.features());
    let baseline = args.baseline.as_ref();
    let baseline =
        baseline.map(|name| baseline::load(&results, name, &environment, &setup.device)).transpose()?;
    let programs = args.programs.find(workspace)?;
    let started = Utc::now();
    let selection = Selection { groups: args.groups.clone(), filter: args.filter.clone(), rows: Vec::new() };
    let old = session::old_programs(baseline.as_ref());
    let seed = started.timestamp().unsigned_abs();
    let mut session = Session::new(&programs, old, &selection, setup, usize::from(args.repeat), seed)?;

    let load_before = environment::load();
    let limits = probe(&programs, &session.setup)?;
    let measured = session.measure()?;
    let patience = Duration::from_secs(args.patience);
    let comparison = baseline
        .as_ref()
        .map(|baseline| {
            let rules = Rules { tolerance: args.tolerance, ..Rules::default() };
            compare::compare(&mut session, &measured, baseline, &rules, patience)
        })
        .transpose()?;
    let claims = claims::check(&mut session, &measured, published::claims(workspace)?, patience)?;
    let limits = match (limits, probe(&programs, &session.setup)?) {
        (Some(before), Some(after)) => Some(before.best(&after)),
        (before, after) => before.or(after),
    };
    let peers = match &args.peers_from {
        Some(file) => Some(peers::read(file)?),
        None if args.peers => Some(measure_peers(workspace, args, &programs)?),
        None => None,
    };
    let result = RunResult {
        schema: SCHEMA,
        started: stamp(started),
        finished: stamp(Utc::now()),
        device: args.programs.device.clone(),
        repeat: usize::from(args.repeat),
        quick: args.quick,
        realtime: args.realtime,
        environment,
        load_before,
        load_after: environment::load(),
        rows: rows(workspace, &session, measured, limits.as_ref())?,
        limits,
        comparison,
        claims,
        peers,
    };
    finish(&results, args, started, &result, &programs)
}

/// Writes everything and says the essential.
fn finish(
    results: &Path,
    args: &MeasureArgs,
    started: DateTime<Utc>,
    result: &RunResult,
    programs: &Programs,
) -> Result<ExitCode> {
    let folder = args.out.clone();
    let folder = folder.unwrap_or_else(|| results.join(started.format("%Y-%m-%dT%H-%M-%SZ").to_string()));
    files::write_json(&folder.join("result.json"), result)?;
    files::write(&folder.join("report.html"), html::page(result).as_bytes())?;
    if let Some(file) = &args.keep {
        files::write_json(file, &result.reduced())?;
    }
    println!("{}", summary::table(result));
    if let Some(comparison) = &result.comparison {
        println!("{}", compare::table(comparison));
    }
    if let Some(name) = &args.save_baseline {
        println!("baseline saved: {}", baseline::save(results, name, result, programs)?.display());
    }
    println!("report: {}", folder.join("report.html").display());
    Ok(if result.regressions().next().is_some() { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

/// Rows with everything that is known about them.
fn rows(
    workspace: &Path,
    session: &Session,
    mut measured: Measured,
    limits: Option<&Limits>,
) -> Result<Vec<Row>> {
    let published = published::published(workspace)?;
    let mut rows = Vec::new();
    for (name, program) in session.rows() {
        let Some(samples) = measured.new.remove(name) else { continue };
        let mut row = Row::new(name, program, samples);
        row.counters = measured.counters.iter().find(|counters| counters.row == name).cloned();
        row.published = published.iter().find(|(row, _)| row == name).map(|(_, figure)| figure.clone());
        if let Some(limits) = limits {
            limits.apply(&mut row);
        }
        rows.push(row);
    }
    Ok(rows)
}

/// The limits of this machine, where the benches bring a probe for the device.
fn probe(programs: &Programs, setup: &Setup) -> Result<Option<Limits>> {
    programs.others.get("roofline").map(|program| roofline::measure(program, setup)).transpose()
}

fn measure_peers(workspace: &Path, args: &MeasureArgs, programs: &Programs) -> Result<peers::Peers> {
    let built = match &args.programs.prebuilt {
        Some(_) => programs.clone(),
        None => programs::build_for_peers(workspace, &args.programs.features())?,
    };
    let settings = peers::Settings {
        device: &args.programs.device,
        program: built.other("metal-candle")?,
        op_speed: built.other("op_speed")?,
        rounds: args.peer_rounds,
        install: args.install_peers,
    };
    peers::measure(workspace, &settings)
}

impl ProgramsArgs {
    /// What the device needs to be compiled in.
    fn features(&self) -> Vec<String> {
        let kind = self.device.split(':').next().unwrap_or_default();
        ["cuda", "metal"]
            .iter()
            .filter(|feature| **feature == kind)
            .map(|feature| (*feature).to_owned())
            .collect()
    }

    fn find(&self, workspace: &Path) -> Result<Programs> {
        let mut programs = match &self.prebuilt {
            Some(folder) => programs::prebuilt(folder).context("--prebuilt")?,
            None => programs::build(workspace, &self.features())?,
        };
        programs.select(&self.programs)?;
        Ok(programs)
    }
}

fn stamp(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}
