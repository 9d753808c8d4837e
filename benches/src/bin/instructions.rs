//! Runs one row a number of times on one thread, to be counted from outside:
//!
//! `valgrind --tool=callgrind --callgrind-out-file=/dev/null instructions ROW N`
//!
//! The instructions of one iteration are those at N = 5 less those at N = 1, divided by 4: what was needed to make the
//! row's inputs falls out.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{env, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use metal_candle::device;
use metal_candle_benches::{Bench, rows};

const USAGE: &str = "usage: instructions ROW N     runs the row N times on one thread
       instructions --list    the rows whose instructions can be counted";

fn main() -> ExitCode {
    match run(&env::args().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let rows = rows::all();
    match arguments {
        [list] if list == "--list" => {
            rows.iter().filter(|row| row.counts_instructions).for_each(|row| println!("{}", row.id));
            Ok(())
        }
        [id, count] => {
            let row = rows.iter().find(|row| row.id == *id);
            let row = row.with_context(|| format!("there is no row `{id}`; --list names those that fit"))?;
            let count: u64 = count.parse().with_context(|| format!("`{count}` is no number of runs"))?;
            device::set_threads(1);
            let bench = Bench::from_environment()?;
            let mut call = (row.make)(&bench)?;
            for _ in 0..count {
                call.prepare()?;
                call.run()?;
            }
            bench.synchronize()
        }
        _ => bail!("{USAGE}"),
    }
}
