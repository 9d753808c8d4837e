//! The `metal-candle` program.

fn main() {}
