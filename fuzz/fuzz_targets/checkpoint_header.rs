//! Headers of safetensors files, and indexes of shards.
#![no_main]

use libfuzzer_sys::fuzz_target;
use metal_candle_fuzz::allocation::{Counting, within_limit};
use metal_candle_fuzz::exercise;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fuzz_target!(|data: &[u8]| {
    within_limit(data, exercise::checkpoint_header);
    within_limit(data, exercise::index);
    // Most inputs have no valid length in front; as the header of a file without data, more of them count.
    let mut framed = (data.len() as u64).to_le_bytes().to_vec();
    framed.extend_from_slice(data);
    within_limit(&framed, exercise::checkpoint_header);
});
