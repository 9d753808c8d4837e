//! Whole models: minutes.

use std::process::ExitCode;

use metal_candle_benches::{measure, rows};

fn main() -> ExitCode {
    measure::main(&rows::model())
}
