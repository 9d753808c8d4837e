//! Adapters of PEFT and of mlx-lm against what these programs compute with them.

use std::{collections::BTreeMap, fs};

use metal_candle::{
    lora::{Format, MergeOptions, SaveOptions, StoredAdapter, merge},
    model::{LogitsFor, Model, SequenceInput},
};
use metal_candle_testkit::{golden, golden::Tensors, tolerance::Gate};

use crate::support::{bits, close, differs, floats, load, logits, model, model_folder, with};

/// A folder of `golden/training` with an adapter.
struct Case {
    name: String,
    model: String,
    stored: StoredAdapter,
    expected: Tensors,
}

fn cases(models: &mut BTreeMap<String, Model>) -> Vec<Case> {
    let root = golden::root().join("training");
    let mut names: Vec<String> = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| root.join(name).join("adapter_config.json").is_file())
        .collect();
    names.sort();
    // A list that loses entries would let every test pass on less than it claims.
    assert!(names.len() >= 18, "only {names:?}");
    let of = |name: String| {
        let base = name.trim_start_matches("mlx-").split('-').next().unwrap().to_owned();
        let model = models.entry(base.clone()).or_insert_with(|| model(&base));
        let stored = StoredAdapter::load(&root.join(&name), Some(model.spec()))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected = Tensors::open(&format!("training/{name}/expected.safetensors"));
        Case { name, model: base, stored, expected }
    };
    names.into_iter().map(of).collect()
}

impl Case {
    fn prompts(&self) -> Vec<(&[u32], &[f32])> {
        let count = self.expected.names().filter(|name| name.starts_with("ids_")).count();
        assert!(count >= 2);
        let of = |index| {
            let logits = self.expected.floats(&format!("logits_{index}"));
            (self.expected.ids(&format!("ids_{index}")), logits.values.as_slice())
        };
        (0..count).map(of).collect()
    }

    fn check(&self, model: &Model, stored: &StoredAdapter, gate: Gate, what: &str) {
        let adapter = with(model, &stored.adapter);
        for (tokens, expected) in self.prompts() {
            close(&logits(model, tokens, Some(&adapter)), expected, gate, format!("{} {what}", self.name));
        }
    }
}

#[test]
fn logits_equal_those_of_the_program_that_wrote_the_adapter() {
    let mut models = BTreeMap::new();
    for case in cases(&mut models) {
        let model = &models[&case.model];
        case.check(model, &case.stored, Gate::Logits, "alone");
        // All prompts in one ragged batch, and the base model in the middle of them.
        let adapter = with(model, &case.stored.adapter);
        let prompts = case.prompts();
        let mut caches: Vec<_> = (0..=prompts.len()).map(|_| model.new_cache()).collect();
        let mut tokens: Vec<_> = prompts.iter().map(|(tokens, _)| (*tokens, Some(&adapter))).collect();
        tokens.insert(1, (prompts[0].0, None));
        let inputs = caches.iter_mut().zip(&tokens);
        let mut batch: Vec<_> = inputs
            .map(|(cache, (tokens, adapter))| SequenceInput {
                tokens,
                cache,
                logits: LogitsFor::All,
                adapter: *adapter,
            })
            .collect();
        let found = floats(&model.forward(&mut batch).unwrap());
        let base = logits(model, prompts[0].0, None);
        let expected = [
            prompts[0].1,
            &base,
            &prompts[1..].iter().map(|(_, logits)| *logits).collect::<Vec<_>>().concat(),
        ]
        .concat();
        close(&found, &expected, Gate::Logits, format!("{} in a batch", case.name));
        differs(&base, prompts[0].1, format!("{}: the adapter's change", case.name));
    }
}

#[test]
fn merged_models_give_the_logits_of_the_adapter() {
    let mut models = BTreeMap::new();
    for case in cases(&mut models) {
        let output = tempfile::tempdir().unwrap();
        let merged = merge(
            &model_folder(&case.model),
            &case.stored.adapter,
            output.path(),
            &MergeOptions::default(),
            &mut |_, _| (),
        )
        .unwrap();
        assert_eq!(merged.changed, case.stored.adapter.layers.len(), "{}", case.name);
        let model = load(output.path());
        for (index, (tokens, expected)) in case.prompts().into_iter().enumerate() {
            let found = logits(&model, tokens, None);
            close(&found, expected, Gate::Logits, format!("{} merged", case.name));
            if case.stored.format == Format::Peft {
                let expected = &case.expected.floats(&format!("merged_logits_{index}")).values;
                close(&found, expected, Gate::Logits, format!("{} merged by both", case.name));
            }
        }
    }
}

#[test]
fn conversions_change_nothing() {
    let mut models = BTreeMap::new();
    let mut exact = 0;
    for case in cases(&mut models) {
        let model = &models[&case.model];
        let options = SaveOptions { base_model: Some("base"), layer_count: Some(model.spec().layers.len()) };
        let (first, second) = match case.stored.format {
            Format::Peft => (Format::Mlx, Format::Peft),
            Format::Mlx => (Format::Peft, Format::Mlx),
        };
        // In its own format, in the other, and back.
        let mut before = case.stored.clone();
        for format in [second, first, second] {
            let folder = tempfile::tempdir().unwrap();
            let wrote = before.adapter.save(folder.path(), format, &options);
            wrote.unwrap_or_else(|error| panic!("{} as {}: {error}", case.name, format.name()));
            let after = StoredAdapter::load(folder.path(), Some(model.spec())).unwrap();
            assert_eq!((after.format, after.base_model.as_deref()), (format, Some("base")));
            case.check(model, &after, Gate::Logits, format.name());
            let is_uniform = case.stored.adapter.config.rank_pattern.is_empty()
                && case.stored.adapter.config.alpha_pattern.is_empty();
            if format == second && before.format == second || is_uniform {
                assert_eq!(
                    bits(&after.adapter),
                    bits(&case.stored.adapter),
                    "{} as {}",
                    case.name,
                    format.name()
                );
                exact += 1;
            }
            before = after;
        }
    }
    assert!(exact >= 40, "{exact}");
}
