//! Single operations: seconds for all of them.

use std::process::ExitCode;

use metal_candle_benches::{measure, rows};

fn main() -> ExitCode {
    measure::main(&rows::micro())
}
