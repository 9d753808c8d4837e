//! KV cache operations against a naive model: for every position the token that was written there.
//!
//! Each fork runs with a real (tiny) decoder; after any sequence of appends, forks and truncations its next logits
//! must be those of a fresh cache that was given the same tokens at once.
#![allow(clippy::unwrap_used)]

use std::{path::Path, sync::OnceLock};

use metal_candle::{
    cache::KvCache,
    model::{LoadOptions, LogitsFor, Model, SequenceInput},
};
use metal_candle_testkit::{
    golden,
    tolerance::{Gate, Precision, assert_close, tolerance},
};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Operation {
    /// Appends tokens to a sequence, in one forward.
    Append { sequence: usize, tokens: Vec<u32> },
    /// Starts another sequence with the same content.
    Fork { sequence: usize },
    /// Goes back to a part of the length.
    Truncate { sequence: usize, part: f64 },
}

fn operation() -> impl Strategy<Value = Operation> {
    let sequence = 0..4usize;
    prop_oneof![
        4 => (sequence.clone(), prop::collection::vec(0..80u32, 1..150))
            .prop_map(|(sequence, tokens)| Operation::Append { sequence, tokens }),
        1 => sequence.clone().prop_map(|sequence| Operation::Fork { sequence }),
        2 => (sequence, 0.0..1.0).prop_map(|(sequence, part)| Operation::Truncate { sequence, part }),
    ]
}

struct Sequence {
    cache: KvCache,
    tokens: Vec<u32>,
}

/// Full attention, windows on all layers, windows on some.
fn models() -> &'static [Model] {
    static MODELS: OnceLock<Vec<Model>> = OnceLock::new();
    MODELS.get_or_init(|| {
        ["qwen2", "mistral", "gemma2"].map(|name| with_context(&golden::model(name).folder, 600)).into()
    })
}

/// A golden model with a context of several chunks of cache.
fn with_context(folder: &Path, context: usize) -> Model {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = folder.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    config["max_position_embeddings"] = context.into();
    std::fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
    Model::load(copy.path(), &LoadOptions::default(), &mut |_, _| ()).unwrap()
}

fn run(model: &Model, tokens: &[u32], cache: &mut KvCache) -> Vec<f32> {
    let mut batch = [SequenceInput { tokens, cache, logits: LogitsFor::Last, adapter: None }];
    model.forward(&mut batch).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn perform(model: &Model, operations: &[Operation]) {
    let mut sequences = vec![Sequence { cache: model.new_cache(), tokens: Vec::new() }];
    let limit = model.spec().max_positions - 1;
    for operation in operations {
        let count = sequences.len();
        match operation {
            Operation::Append { sequence, tokens } => {
                let sequence = &mut sequences[sequence % count];
                let room = limit - sequence.tokens.len();
                let tokens = &tokens[..tokens.len().min(room)];
                if !tokens.is_empty() {
                    run(model, tokens, &mut sequence.cache);
                    sequence.tokens.extend(tokens);
                }
            }
            Operation::Fork { sequence } => {
                let Sequence { cache, tokens } = &sequences[sequence % count];
                let fork = Sequence { cache: cache.fork(), tokens: tokens.clone() };
                sequences.push(fork);
            }
            Operation::Truncate { sequence, part } => {
                let sequence = &mut sequences[sequence % count];
                let length = (sequence.tokens.len() as f64 * part) as usize;
                // A window may have lost what would be needed; then nothing must have changed.
                if sequence.cache.truncate(length).is_ok() {
                    sequence.tokens.truncate(length);
                }
            }
        }
        for sequence in &sequences {
            assert_eq!(sequence.cache.len(), sequence.tokens.len());
        }
    }
    for Sequence { mut cache, mut tokens } in sequences {
        let found = run(model, &[7], &mut cache);
        tokens.push(7);
        let expected = run(model, &tokens, &mut model.new_cache());
        assert_close(&found, &expected, tolerance(Gate::SameModel, Precision::F32), "after the operations");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_operations_leaves_what_a_fresh_cache_would_hold(
        operations in prop::collection::vec(operation(), 1..16),
    ) {
        for model in models() {
            perform(model, &operations);
        }
    }
}

#[test]
fn a_window_bounds_the_cache() {
    let [full, windowed, _] = models() else { panic!("three models") };
    let length = full.spec().max_positions.min(windowed.spec().max_positions) - 1;
    let tokens: Vec<u32> = (0..length as u32).map(|token| token % 80).collect();
    let mut bytes = Vec::new();
    for model in [full, windowed] {
        let mut cache = model.new_cache();
        for part in tokens.chunks(16) {
            run(model, part, &mut cache);
        }
        bytes.push(cache.bytes() / model.spec().kv_bytes_per_position(4));
    }
    // Chunks of 128 positions: all of them, and the last one or two.
    assert_eq!(bytes[0], length.div_ceil(128) * 128);
    assert!(bytes[1] <= 256, "{}", bytes[1]);
}
