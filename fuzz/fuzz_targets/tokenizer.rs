//! `tokenizer.json`: reading it, and encoding and decoding with what was accepted.
#![no_main]

use libfuzzer_sys::fuzz_target;
use metal_candle::text::Tokenizer;
use metal_candle_fuzz::allocation::{Counting, within_limit};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fuzz_target!(
    init: {
        // The tokenizers crate panics on some files. The library catches that and returns an error, so only
        // a panic that leaves the library counts: it still ends the run, without this hook.
        std::panic::set_hook(Box::new(|_| {}));
    },
    |data: &[u8]| within_limit(data, read)
);

fn read(data: &[u8]) {
    let Ok(tokenizer) = Tokenizer::from_bytes(data) else { return };
    let Ok(ids) = tokenizer.encode("Hello  wörld, 12\u{1F600}\n", true) else { return };
    // Decoding may refuse, but must not panic.
    tokenizer.decode(&ids, false).ok();
    tokenizer.decode(&[0, 1, u32::MAX], true).ok();
}
