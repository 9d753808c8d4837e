//! The `metal-candle` program: generate, chat, evaluate and measure language models.

mod adapter;
mod adapters;
mod args;
mod bench;
mod bench_train;
mod chat;
mod console;
mod conversation;
mod doctor;
mod eval;
mod generate;
mod interrupt;
mod model;
mod prompt;
mod quickstart;
mod report;
mod sampling;
mod shapes;
mod tiny;
mod tracing;
mod train;

use std::process::ExitCode;

use clap::Parser as _;

use crate::{
    args::{Command, CommandLine},
    console::Console,
};

#[global_allocator]
static ALLOCATOR: metal_candle::device::Allocator = metal_candle::device::Allocator::new();

fn main() -> ExitCode {
    let line = CommandLine::parse();
    let console = Console::new(line.quiet);
    let ready = interrupt::install(line.quiet).and_then(|()| tracing::begin(line.trace.as_deref(), &console));
    let outcome = ready.and_then(|()| match line.command {
        Command::Quickstart(args) => quickstart::run(&args, &console),
        Command::Generate(args) => generate::run(&args, &console),
        Command::Chat(args) => chat::run(&args, &console),
        Command::Prompt(args) => prompt::run(&args, &console),
        Command::Eval(args) => eval::run(&args, &console),
        Command::Train(args) => train::run(&args, &console),
        Command::Adapter(args) => adapter::run(&args, &console),
        Command::Report(args) => report::run(&args, &console),
        Command::Bench(args) => bench::run(&args, &console),
        Command::Doctor(args) => doctor::run(&args, &console),
    });
    // Also of a command that failed: what was recorded until then.
    let outcome = match (outcome, tracing::end(&console)) {
        (Err(error), Err(of_trace)) => {
            console.error(&of_trace);
            Err(error)
        }
        (outcome, traced) => outcome.and(traced),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output, `head` say, has seen enough.
        Err(error) if error.is::<console::OutputClosed>() => ExitCode::SUCCESS,
        Err(error) if error.is::<interrupt::Interrupted>() => ExitCode::from(interrupt::EXIT_CODE),
        Err(error) => {
            console.error(&error);
            ExitCode::FAILURE
        }
    }
}
