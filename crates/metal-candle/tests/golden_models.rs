//! Every architecture against transformers: logits, greedy tokens, and the ways to run a batch that must
//! agree with each other. The files come from `golden/make_models.py`. `METAL_CANDLE_TEST_DEVICE` names the device, the CPU if
//! it is not set.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use metal_candle::{
    cache::KvCache,
    device::{DType, Device, DeviceChoice},
    model::{Config, LoadOptions, LogitsFor, Model, SequenceInput, arch, rope::RopeSpec},
};
use metal_candle_testkit::{
    golden::{self, GoldenModel},
    tolerance::{Gate, Precision, assert_close, tolerance},
};

struct Golden {
    name: String,
    model: Model,
    expected: GoldenModel,
}

/// All models, with activations in f32: the CPU's always are, elsewhere they have the dtype of the weights.
fn all() -> Vec<Golden> {
    let device = device();
    let dtype = (!device.is_cpu()).then_some(DType::F32);
    golden::models().into_iter().map(|expected| load(expected, &device, dtype)).collect()
}

fn device() -> Device {
    let name = std::env::var("METAL_CANDLE_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    let opened = name.parse::<DeviceChoice>().and_then(DeviceChoice::open);
    opened.unwrap_or_else(|error| panic!("METAL_CANDLE_TEST_DEVICE: {error}"))
}

fn load(expected: GoldenModel, device: &Device, dtype: Option<DType>) -> Golden {
    let name = expected.name.clone();
    let options = LoadOptions { device: device.clone(), dtype, ..LoadOptions::default() };
    let model = Model::load(&expected.folder, &options, &mut |_, _| ())
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    Golden { name, model, expected }
}

impl Golden {
    fn rows(&self, name: &str) -> Vec<Vec<f32>> {
        self.expected.floats(name).rows().map(<[f32]>::to_vec).collect()
    }

    fn run(&self, tokens: &[u32], cache: &mut KvCache, logits: LogitsFor) -> Vec<Vec<f32>> {
        let logits =
            self.model.forward(&mut [SequenceInput { tokens, cache, logits, adapter: None }]).unwrap();
        logits.to_vec2::<f32>().unwrap()
    }
}

fn argmax(row: &[f32]) -> u32 {
    let best = (0..row.len()).max_by(|&left, &right| row[left].total_cmp(&row[right])).unwrap();
    u32::try_from(best).unwrap()
}

fn check(found: &[Vec<f32>], expected: &[Vec<f32>], gate: Gate, what: &str) {
    assert_close(&found.concat(), &expected.concat(), tolerance(gate, Precision::F32), what);
}

#[test]
fn prefill_logits_equal_transformers() {
    for golden in all() {
        for suffix in golden.expected.suffixes() {
            let mut cache = golden.model.new_cache();
            let logits =
                golden.run(golden.expected.ids(&format!("prompt{suffix}")), &mut cache, LogitsFor::All);
            check(
                &logits,
                &golden.rows(&format!("logits{suffix}")),
                Gate::Logits,
                &(golden.name.clone() + suffix),
            );
        }
    }
}

#[test]
fn bf16_and_f16_files_equal_transformers_in_their_own_dtype() {
    for (name, precision) in [("qwen2-bf16", Precision::Bf16), ("llama3-f16", Precision::F16)] {
        let golden = load(golden::model(name), &device(), None);
        let mut cache = golden.model.new_cache();
        let logits = golden.run(golden.expected.ids("prompt"), &mut cache, LogitsFor::All).concat();
        let native = &golden.expected.floats("logits_native").values;
        assert_close(&logits, native, tolerance(Gate::Logits, precision), name);
    }
}

#[test]
fn rotary_tables_equal_transformers() {
    let cases = golden::json("rope.json");
    for case in cases.as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let config = Config::from_slice(case["config"].to_string().as_bytes()).unwrap();
        let spec = arch::read(&config, &[]).unwrap_or_else(|error| panic!("{name}: {error}"));
        let length = usize::try_from(case["length"].as_u64().unwrap()).unwrap();
        let expected: Vec<f32> = serde_json::from_value(case["inv_freq"].clone()).unwrap();
        let allowed = tolerance(Gate::RopeTable, Precision::F32);
        assert_close(&spec.ropes[0].frequencies(length), &expected, allowed, name);
        let factor = case["attention_scaling"].as_f64().unwrap() as f32;
        assert_close(&[spec.ropes[0].attention_factor()], &[factor], allowed, name);
    }
}

#[test]
fn greedy_tokens_equal_transformers() {
    for golden in all() {
        for suffix in golden.expected.suffixes() {
            let mut cache = golden.model.new_cache();
            let mut tokens = golden.expected.ids(&format!("prompt{suffix}")).to_vec();
            let (mut found, mut logits) = (Vec::new(), Vec::new());
            for _ in 0..32 {
                golden.model.restart_if_outgrown(&mut cache, tokens.len()).unwrap();
                let row = golden.run(&tokens[cache.len()..], &mut cache, LogitsFor::Last).remove(0);
                tokens.push(argmax(&row));
                found.push(argmax(&row));
                logits.push(row);
            }
            let what = golden.name.clone() + suffix;
            assert_eq!(found, golden.expected.ids(&format!("greedy{suffix}")), "{what}");
            check(&logits, &golden.rows(&format!("greedy_logits{suffix}")), Gate::Logits, &what);
        }
    }
}

#[test]
fn every_architecture_is_covered() {
    let covered: BTreeSet<String> =
        all().iter().map(|golden| golden.model.spec().architecture.clone()).collect();
    let supported: BTreeSet<String> = arch::SUPPORTED.iter().map(|&name| name.to_owned()).collect();
    assert_eq!(covered, supported);
}

#[test]
fn a_prompt_in_pieces_equals_the_prompt_at_once() {
    for golden in all() {
        let prompt = golden.expected.ids("prompt");
        for piece in [1, 5, 8] {
            let mut cache = golden.model.new_cache();
            cache.expect(prompt.len());
            let mut logits = Vec::new();
            for tokens in prompt.chunks(piece) {
                logits.extend(golden.run(tokens, &mut cache, LogitsFor::All));
            }
            check(
                &logits,
                &golden.rows("logits"),
                Gate::SameModel,
                &format!("{} in pieces of {piece}", golden.name),
            );
        }
    }
}

#[test]
fn a_ragged_batch_equals_its_sequences_alone() {
    for golden in all() {
        let prompt = golden.expected.ids("prompt");
        let starts = [0, 3, prompt.len() - 2, prompt.len() / 2];
        let alone: Vec<_> = starts.iter().map(|&start| golden.steps(&prompt[start..])).collect();

        let mut caches: Vec<_> = starts.iter().map(|_| golden.model.new_cache()).collect();
        let run = |caches: &mut [KvCache], tokens: &[&[u32]]| {
            let inputs = caches.iter_mut().zip(tokens);
            let mut batch: Vec<_> = inputs
                .map(|(cache, tokens)| SequenceInput {
                    tokens,
                    cache,
                    logits: LogitsFor::Last,
                    adapter: None,
                })
                .collect();
            golden.model.forward(&mut batch).unwrap().to_vec2::<f32>().unwrap()
        };
        let prompts: Vec<_> = starts.iter().map(|&start| &prompt[start..]).collect();
        let first = run(&mut caches, &prompts);
        // The second step mixes a decode row with longer continuations.
        let second = run(&mut caches, &[&[1], &[1], &[1], &[1]]);
        let third = run(&mut caches, &[&[2, 3, 4][..], &[2], &[2, 3], &[2]]);
        for (index, alone) in alone.iter().enumerate() {
            let what = format!("{} sequence {index}", golden.name);
            check(&first[index..=index], &alone[0..1], Gate::SameModel, &what);
            check(&second[index..=index], &alone[1..2], Gate::SameModel, &what);
            if [1, 3].contains(&index) {
                check(&third[index..=index], &alone[2..3], Gate::SameModel, &what);
            }
        }
    }
}

#[test]
fn a_fork_equals_a_fresh_sequence_and_leaves_its_origin_alone() {
    for golden in all() {
        let prompt = golden.expected.ids("prompt");
        let fresh = |tail: &[u32]| {
            let mut cache = golden.model.new_cache();
            golden.run(prompt, &mut cache, LogitsFor::Last);
            tail.iter()
                .map(|&token| golden.run(&[token], &mut cache, LogitsFor::Last).remove(0))
                .collect::<Vec<_>>()
        };
        let mut origin = golden.model.new_cache();
        golden.run(prompt, &mut origin, LogitsFor::Last);
        let mut fork = origin.fork();
        let (left, right) = ([5, 6, 7], [9, 8, 7]);
        let mut found = (Vec::new(), Vec::new());
        for step in 0..3 {
            found.0.extend(golden.run(&left[step..=step], &mut origin, LogitsFor::Last));
            found.1.extend(golden.run(&right[step..=step], &mut fork, LogitsFor::Last));
        }
        assert_eq!(found.0, fresh(&left), "{}", golden.name);
        assert_eq!(found.1, fresh(&right), "{}", golden.name);
    }
}

#[test]
fn a_truncated_cache_continues_as_if_it_had_never_been_longer() {
    for golden in all() {
        let prompt = golden.expected.ids("prompt");
        let length_matters = golden.model.spec().ropes.iter().any(RopeSpec::depends_on_length);
        let mut cache = golden.model.new_cache();
        cache.expect(if length_matters { prompt.len() + 1 } else { 0 });
        golden.run(prompt, &mut cache, LogitsFor::None);
        golden.run(&[3], &mut cache, LogitsFor::None);
        for length in [prompt.len(), 6, 0] {
            cache.truncate(length).unwrap();
            cache.expect(if length_matters { prompt.len() + 1 } else { 0 });
            assert_eq!(cache.len(), length);
            let mut continued = cache.fork();
            let rest: Vec<u32> = prompt[length..].iter().copied().chain([3]).collect();
            let found = golden.run(&rest, &mut continued, LogitsFor::Last);
            let mut fresh = golden.model.new_cache();
            let whole: Vec<u32> = prompt.iter().copied().chain([3]).collect();
            let expected = golden.run(&whole, &mut fresh, LogitsFor::Last);
            check(&found, &expected, Gate::SameModel, &format!("{} truncated to {length}", golden.name));
        }
        assert!(cache.truncate(1).is_err(), "a cache cannot be truncated to more than it holds");
    }
}

impl Golden {
    /// Last logits after the prompt, after token 1, and after token 2.
    fn steps(&self, prompt: &[u32]) -> Vec<Vec<f32>> {
        let mut cache = self.model.new_cache();
        let inputs = [prompt, &[1], &[2]];
        inputs.iter().map(|tokens| self.run(tokens, &mut cache, LogitsFor::Last).remove(0)).collect()
    }
}
