//! The project's own tools, started by `cargo xtask`.
// A program for a terminal: what it finds goes to standard output, how it gets on to standard error.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod files;

/// The project's own tools.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure, compare with a baseline, and report
    Bench(bench::BenchArgs),
}

fn main() -> ExitCode {
    let Command::Bench(args) = CommandLine::parse().command;
    match bench::run(args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
