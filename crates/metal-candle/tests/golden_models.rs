//! Every architecture against transformers: logits, greedy tokens, and the ways to run a batch that must
//! agree with each other. The files come from `golden/make_models.py`.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor};
use metal_candle::{
    cache::KvCache,
    model::{LoadOptions, LogitsFor, Model, SequenceInput, arch::SUPPORTED},
};

/// Largest difference relative to the largest logit: f32 arithmetic against f32 arithmetic.
const F32: f32 = 2e-5;
/// The same against arithmetic in the dtype of a bf16 or f16 file.
const NATIVE: f32 = 2e-2;

struct Golden {
    name: String,
    model: Model,
    expected: HashMap<String, Tensor>,
}

fn all() -> Vec<Golden> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/models");
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|folder| folder.join("expected.safetensors").exists());
    folders.sort();
    assert!(!folders.is_empty());
    folders.iter().map(|folder| load(folder)).collect()
}

fn load(folder: &Path) -> Golden {
    let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
    let model = Model::load(folder, &LoadOptions::default(), &mut |_, _| ())
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let expected = candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu).unwrap();
    Golden { name, model, expected }
}

impl Golden {
    /// The prompts of this model: most have one, some further ones.
    fn suffixes(&self) -> Vec<&str> {
        self.expected.keys().filter_map(|name| name.strip_prefix("prompt")).collect()
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        let ids = self.expected[name].to_vec1::<i64>().unwrap();
        ids.into_iter().map(|id| u32::try_from(id).unwrap()).collect()
    }

    fn rows(&self, name: &str) -> Vec<Vec<f32>> {
        self.expected[name].to_vec2::<f32>().unwrap()
    }

    fn run(&self, tokens: &[u32], cache: &mut KvCache, logits: LogitsFor) -> Vec<Vec<f32>> {
        let logits = self.model.forward(&mut [SequenceInput { tokens, cache, logits }]).unwrap();
        logits.to_vec2::<f32>().unwrap()
    }
}

/// The largest difference, relative to the largest expected value.
fn error(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let pairs = found.iter().flatten().zip(expected.iter().flatten());
    let largest = expected.iter().flatten().fold(0f32, |largest, value| largest.max(value.abs()));
    pairs.fold(0f32, |worst, (found, expected)| worst.max((found - expected).abs())) / largest
}

fn argmax(row: &[f32]) -> u32 {
    let best = (0..row.len()).max_by(|&left, &right| row[left].total_cmp(&row[right])).unwrap();
    u32::try_from(best).unwrap()
}

fn check(found: &[Vec<f32>], expected: &[Vec<f32>], tolerance: f32, what: &str) {
    let error = error(found, expected);
    assert!(error <= tolerance, "{what}: error {error:e} above {tolerance:e}");
}

#[test]
fn prefill_logits_equal_transformers() {
    for golden in all() {
        for suffix in golden.suffixes() {
            let mut cache = golden.model.new_cache();
            let logits = golden.run(&golden.ids(&format!("prompt{suffix}")), &mut cache, LogitsFor::All);
            check(&logits, &golden.rows(&format!("logits{suffix}")), F32, &(golden.name.clone() + suffix));
            if golden.expected.contains_key("logits_native") {
                check(&logits, &golden.rows("logits_native"), NATIVE, &golden.name);
            }
        }
    }
}

#[test]
fn greedy_tokens_equal_transformers() {
    for golden in all() {
        for suffix in golden.suffixes() {
            let mut cache = golden.model.new_cache();
            let mut tokens = golden.ids(&format!("prompt{suffix}"));
            let (mut found, mut logits) = (Vec::new(), Vec::new());
            for _ in 0..32 {
                golden.model.restart_if_outgrown(&mut cache, tokens.len()).unwrap();
                let row = golden.run(&tokens[cache.len()..], &mut cache, LogitsFor::Last).remove(0);
                tokens.push(argmax(&row));
                found.push(argmax(&row));
                logits.push(row);
            }
            let what = golden.name.clone() + suffix;
            assert_eq!(found, golden.ids(&format!("greedy{suffix}")), "{what}");
            check(&logits, &golden.rows(&format!("greedy_logits{suffix}")), F32, &what);
        }
    }
}

#[test]
fn every_architecture_is_covered() {
    let covered: BTreeSet<String> =
        all().iter().map(|golden| golden.model.spec().architecture.clone()).collect();
    let supported: BTreeSet<String> = SUPPORTED.iter().map(|&name| name.to_owned()).collect();
    assert_eq!(covered, supported);
}

#[test]
fn a_prompt_in_pieces_equals_the_prompt_at_once() {
    for golden in all() {
        let prompt = golden.ids("prompt");
        for piece in [1, 5, 8] {
            let mut cache = golden.model.new_cache();
            cache.expect(prompt.len());
            let mut logits = Vec::new();
            for tokens in prompt.chunks(piece) {
                logits.extend(golden.run(tokens, &mut cache, LogitsFor::All));
            }
            check(&logits, &golden.rows("logits"), F32, &format!("{} in pieces of {piece}", golden.name));
        }
    }
}

#[test]
fn a_ragged_batch_equals_its_sequences_alone() {
    for golden in all() {
        let prompt = golden.ids("prompt");
        let starts = [0, 3, prompt.len() - 2, prompt.len() / 2];
        let alone: Vec<_> = starts.iter().map(|&start| golden.steps(&prompt[start..])).collect();

        let mut caches: Vec<_> = starts.iter().map(|_| golden.model.new_cache()).collect();
        let run = |caches: &mut [KvCache], tokens: &[&[u32]]| {
            let inputs = caches.iter_mut().zip(tokens);
            let mut batch: Vec<_> = inputs
                .map(|(cache, tokens)| SequenceInput { tokens, cache, logits: LogitsFor::Last })
                .collect();
            golden.model.forward(&mut batch).unwrap().to_vec2::<f32>().unwrap()
        };
        let prompts: Vec<_> = starts.iter().map(|&start| &prompt[start..]).collect();
        let first = run(&mut caches, &prompts);
        // The second step mixes a decode row with longer continuations.
        let second = run(&mut caches, &[&[1], &[1], &[1], &[1]]);
        let third = run(&mut caches, &[&[2, 3, 4], &[2], &[2, 3], &[2]]);
        for (index, alone) in alone.iter().enumerate() {
            let what = format!("{} sequence {index}", golden.name);
            check(&first[index..=index], &alone[0..1], F32, &what);
            check(&second[index..=index], &alone[1..2], F32, &what);
            if [1, 3].contains(&index) {
                check(&third[index..=index], &alone[2..3], F32, &what);
            }
        }
    }
}

#[test]
fn a_fork_equals_a_fresh_sequence_and_leaves_its_origin_alone() {
    for golden in all() {
        let prompt = golden.ids("prompt");
        let fresh = |tail: &[u32]| {
            let mut cache = golden.model.new_cache();
            golden.run(&prompt, &mut cache, LogitsFor::Last);
            tail.iter()
                .map(|&token| golden.run(&[token], &mut cache, LogitsFor::Last).remove(0))
                .collect::<Vec<_>>()
        };
        let mut origin = golden.model.new_cache();
        golden.run(&prompt, &mut origin, LogitsFor::Last);
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
        let prompt = golden.ids("prompt");
        let length_matters = golden.model.spec().ropes.iter().any(|rope| rope.depends_on_length());
        let mut cache = golden.model.new_cache();
        cache.expect(if length_matters { prompt.len() + 1 } else { 0 });
        golden.run(&prompt, &mut cache, LogitsFor::None);
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
            check(&found, &expected, F32, &format!("{} truncated to {length}", golden.name));
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
