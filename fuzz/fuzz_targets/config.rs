//! `config.json` of any architecture.
#![no_main]

use libfuzzer_sys::fuzz_target;
use metal_candle_fuzz::allocation::{Counting, within_limit};
use metal_candle_fuzz::exercise;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fuzz_target!(|data: &[u8]| within_limit(data, exercise::config));
