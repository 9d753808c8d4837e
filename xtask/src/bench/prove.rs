//! Shows, on the machine at hand, that the detector sees a planted slowdown and is silent without one.

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, ensure};
use chrono::Utc;
use clap::Args;

use super::{
    ProgramsArgs,
    baseline::Baseline,
    compare,
    detector::{Rules, Verdict},
    environment,
    process::{Pace, Setup},
    result::{Comparison, RunResult, SCHEMA},
    session::{Selection, Session},
};

/// Rows of different kinds: few microseconds and hundreds, one thread and all.
const ROWS: [&str; 6] = [
    "lora_forward/forward/medium_1024x1024_r8",
    "lora_forward/forward/large_2048x2048_r8",
    "layer_operations/softmax_stable",
    "layer_operations/layer_norm",
    "layer_operations/rms_norm",
    "optimizer_step/adamw_step",
];

#[derive(Debug, Args)]
pub(crate) struct ProveArgs {
    #[command(flatten)]
    programs: ProgramsArgs,

    /// Runs without a change, none of which may raise an alarm
    #[arg(long, value_name = "N", default_value_t = 10)]
    clean_runs: usize,

    /// Runs with a planted slowdown, each of which has to find it and nothing else
    #[arg(long, value_name = "N", default_value_t = 1)]
    planted_runs: usize,

    /// The row that is made slower
    #[arg(long, value_name = "ROW", default_value = ROWS[2])]
    row: String,

    /// How many times as long it takes
    #[arg(long, value_name = "FACTOR", default_value_t = 1.05)]
    slower: f64,

    /// Processes of each group in the screening
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeat: usize,

    /// Share the cores with other programs even where this could have them alone
    #[arg(long)]
    no_realtime: bool,
}

pub(crate) fn run(workspace: &Path, args: &ProveArgs) -> Result<ExitCode> {
    ensure!(
        std::env::var_os("METAL_CANDLE_BENCH_SLOWER").is_none(),
        "METAL_CANDLE_BENCH_SLOWER is set already"
    );
    let programs = args.programs.find(workspace)?;
    let mut setup = Setup {
        device: args.programs.device.clone(),
        pace: Pace::QUICK,
        realtime: !args.no_realtime,
        slower: None,
    };
    if setup.realtime && setup.check_realtime().is_err() {
        setup.realtime = false;
    }
    println!(
        "{} rows, {} processes each, {}; load {}",
        ROWS.len(),
        args.repeat,
        if setup.realtime { "real-time priority" } else { "beside whatever else runs" },
        environment::load().map_or_else(|| "unknown".to_owned(), |load| load.to_string()),
    );
    // As a baseline would be: the same programs in files of their own.
    let copies = tempfile::tempdir()?;
    programs.copy_to(copies.path())?;
    let old = super::programs::prebuilt(copies.path())?;
    let mut prover = Prover { args, programs: &programs, old: &old, setup, workspace, runs: 0 };
    let mut found = 0;
    for _ in 0..args.planted_runs {
        prover.setup.slower = Some(format!("{}={}", args.row, args.slower));
        let comparison = prover.compare()?;
        let convicted = convicted(&comparison);
        found += usize::from(convicted == [args.row.as_str()]);
        let ratio = comparison
            .rows
            .iter()
            .find(|row| row.row == args.row)
            .context("the planted row was not measured")?;
        println!(
            "planted {} × {}: alarms: {}; measured {:.3} [{:.3}, {:.3}] in {} pairs",
            args.row,
            args.slower,
            words(&convicted),
            ratio.ratio.estimate,
            ratio.ratio.low,
            ratio.ratio.high,
            ratio.pairs
        );
    }
    let mut alarms = 0;
    for run in 1..=args.clean_runs {
        prover.setup.slower = None;
        let comparison = prover.compare()?;
        let convicted = convicted(&comparison);
        alarms += usize::from(!convicted.is_empty());
        let suspects = comparison.rows.iter().filter(|row| row.suspect).count();
        println!("clean run {run}: alarms: {}; {suspects} suspects looked at again", words(&convicted));
    }
    println!(
        "planted slowdowns found: {found} of {}; false alarms: {alarms} in {} clean runs",
        args.planted_runs, args.clean_runs
    );
    println!("load {}", environment::load().map_or_else(|| "unknown".to_owned(), |load| load.to_string()));
    let proven = found == args.planted_runs && alarms == 0;
    println!("{}", if proven { "PROVEN" } else { "NOT PROVEN" });
    Ok(if proven { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

struct Prover<'a> {
    args: &'a ProveArgs,
    programs: &'a super::Programs,
    old: &'a super::Programs,
    setup: Setup,
    workspace: &'a Path,
    runs: u64,
}

impl Prover<'_> {
    /// One whole comparison of the programs with themselves.
    fn compare(&mut self) -> Result<Comparison> {
        self.runs += 1;
        let seed = Utc::now().timestamp().unsigned_abs().wrapping_add(self.runs << 32);
        let selection =
            Selection { rows: ROWS.iter().map(|row| (*row).to_owned()).collect(), ..Selection::default() };
        let mut session = Session::new(
            self.programs,
            Some(self.old),
            &selection,
            self.setup.clone(),
            self.args.repeat,
            seed,
        )?;
        let measured = session.measure()?;
        ensure!(
            measured.new.len() == ROWS.len(),
            "not all of {} are rows of these programs",
            ROWS.join(", ")
        );
        let baseline = Baseline {
            name: "itself".to_owned(),
            result: RunResult {
                schema: SCHEMA,
                environment: environment::snapshot(self.workspace, &[]),
                ..RunResult::default()
            },
            programs: Some(self.old.clone()),
        };
        compare::compare(&mut session, &measured, &baseline, &Rules::default(), Duration::from_secs(120))
    }
}

fn convicted(comparison: &Comparison) -> Vec<&str> {
    let rows = comparison.rows.iter().filter(|row| row.verdict == Verdict::Regression);
    rows.map(|row| row.row.as_str()).collect()
}

fn words(rows: &[&str]) -> String {
    if rows.is_empty() { "none".to_owned() } else { rows.join(", ") }
}
