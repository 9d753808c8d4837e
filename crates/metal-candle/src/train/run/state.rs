//! What a run needs to go on as if it had never stopped, beside its parameters: plain data, one JSON file.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    device,
    model::Model,
    train::{RunLength, TrainConfig, TrainError, data::Cursor},
};

/// Where a run stands after a whole step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RunState {
    /// Steps made. The schedule, and the random numbers of dropout, follow from it.
    pub(super) step: u64,
    /// Steps in all.
    pub(super) total_steps: u64,
    /// The next batch.
    pub(super) cursor: Cursor,
    /// The best measurement.
    pub(super) best: Option<Best>,
    /// Measurements since then.
    pub(super) since_best: u64,
    /// The step of the last measurement.
    pub(super) measured: Option<u64>,
    /// What chat templates take for now, throughout the run.
    pub(super) time: String,
    /// The bytes of each data file, as a number.
    pub(super) data: BTreeMap<String, u64>,
    /// What the model is.
    pub(super) model: ModelStamp,
    /// The settings.
    pub(super) config: TrainConfig,
    /// The size of each of the checkpoint's other files.
    #[serde(default)]
    pub(super) files: BTreeMap<String, u64>,
}

/// The best measurement so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Best {
    pub(super) step: u64,
    pub(super) loss: f64,
}

/// What shows that a model is another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ModelStamp {
    architecture: String,
    parameters: u64,
    dtype: String,
    device: String,
}

impl ModelStamp {
    pub(super) fn of(model: &Model) -> Self {
        Self {
            architecture: model.spec().architecture.clone(),
            parameters: model.spec().parameters(),
            dtype: model.dtype().as_str().to_owned(),
            device: device::kind(model.device()).to_owned(),
        }
    }
}

impl RunState {
    /// An error that names all that differs between a saved run and one that is to go on from it. A run may become longer.
    pub(super) fn check_same(&self, now: &Self, path: &Path) -> Result<(), TrainError> {
        let mut differences = Vec::new();
        let (mut before, mut after) = (self.config.clone(), now.config.clone());
        if is_no_shorter(before.length, after.length, self.step) {
            (before.length, after.length) = (RunLength::default(), RunLength::default());
        }
        // The folder may have been moved.
        before.output.clone_from(&after.output);
        compare("", &as_json(&before), &as_json(&after), &mut differences);
        compare("model.", &as_json(&self.model), &as_json(&now.model), &mut differences);
        let names: std::collections::BTreeSet<&String> = self.data.keys().chain(now.data.keys()).collect();
        for name in names {
            match (self.data.get(name), now.data.get(name)) {
                (Some(before), Some(after)) if before != after => {
                    differences.push(format!("{name}: the file has other content"));
                }
                (Some(_), None) => differences.push(format!("{name}: the file was there, and is not")),
                (None, Some(_)) => differences.push(format!("{name}: the file was not there, and is")),
                _ => {}
            }
        }
        if differences.is_empty() {
            return Ok(());
        }
        Err(TrainError::Changed { path: path.to_owned(), differences })
    }
}

/// Whether a run of the one length may go on as one of the other.
fn is_no_shorter(before: RunLength, after: RunLength, step: u64) -> bool {
    match (before, after) {
        (RunLength::Steps(_), RunLength::Steps(after)) => after >= step,
        (RunLength::Epochs(before), RunLength::Epochs(after)) => after >= before,
        _ => false,
    }
}

/// Names the leaves that differ.
fn compare(prefix: &str, before: &Value, after: &Value, differences: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in old {
                let inner = format!("{prefix}{key}");
                match new.get(key) {
                    Some(other) if value.is_object() && other.is_object() => {
                        compare(&format!("{inner}."), value, other, differences);
                    }
                    other => compare(&inner, value, other.unwrap_or(&Value::Null), differences),
                }
            }
            for (key, value) in new.iter().filter(|(key, _)| !old.contains_key(*key)) {
                differences.push(format!("{prefix}{key}: was not set, is {value}"));
            }
        }
        _ if before == after => {}
        _ => differences.push(format!("{prefix}: was {before}, is {after}")),
    }
}

fn as_json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("plain data can be written as JSON")
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{lora::LoraConfig, train::Schedule};

    pub(in crate::train::run) fn state(step: u64) -> RunState {
        RunState {
            step,
            total_steps: 10,
            cursor: Cursor::default(),
            best: Some(Best { step: 1, loss: 0.1 + 0.2 }),
            since_best: 2,
            measured: Some(1),
            time: "2026-01-31T23:59:00".to_owned(),
            data: [("train".to_owned(), u64::MAX)].into(),
            model: ModelStamp {
                architecture: "qwen3".to_owned(),
                parameters: 7,
                dtype: "f32".to_owned(),
                device: "cpu".to_owned(),
            },
            config: TrainConfig { length: RunLength::Steps(10), ..TrainConfig::default() },
            files: BTreeMap::new(),
        }
    }

    fn differences(now: &RunState) -> Vec<String> {
        match state(5).check_same(now, Path::new("checkpoint")) {
            Ok(()) => Vec::new(),
            Err(TrainError::Changed { differences, .. }) => differences,
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn states_come_back_exactly() {
        let text = serde_json::to_string(&state(5)).unwrap();
        assert_eq!(serde_json::from_str::<RunState>(&text).unwrap(), state(5));
    }

    #[test]
    fn a_longer_run_is_the_same_run_and_a_shorter_one_is_not() {
        let with = |length| {
            let mut now = state(0);
            now.config.length = length;
            differences(&now)
        };
        for length in [RunLength::Steps(10), RunLength::Steps(500), RunLength::Steps(5)] {
            assert!(with(length).is_empty());
        }
        for length in [RunLength::Steps(4), RunLength::Epochs(3.0)] {
            assert!(with(length)[0].starts_with("length"), "{:?}", with(length));
        }
    }

    #[test]
    fn every_difference_is_named_with_what_it_was_and_is() {
        let mut now = state(0);
        now.config.schedule = Schedule::constant(0.5);
        now.config.lora = LoraConfig { rank: 16, ..LoraConfig::default() };
        now.config.save_every = None;
        now.model.dtype = "bf16".to_owned();
        now.data = [("train".to_owned(), 3), ("valid".to_owned(), 4)].into();
        assert_eq!(
            differences(&now),
            [
                "lora.rank: was 8, is 16",
                "schedule.learning_rate: was 0.0001, is 0.5",
                "save_every: was 100, is null",
                "model.dtype: was \"f32\", is \"bf16\"",
                "train: the file has other content",
                "valid: the file was not there, and is",
            ]
        );
    }
}
