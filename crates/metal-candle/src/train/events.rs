//! What a training run tells whoever watches it.
//!
//! The run knows nothing of its observers; they know nothing of the run but these events. Each is one JSON object with its
//! kind in `event`. A number that is not finite is `null` there and NaN when it is read back.

use std::ops::ControlFlow;

use serde::{Deserialize, Deserializer, Serialize};

use crate::Result;

/// Something that happened in a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum TrainEvent {
    /// The run begins, or goes on after it was stopped.
    Started(Started),
    /// An optimizer step was made.
    Step(Step),
    /// The model was measured on data that it does not learn from.
    Evaluation(Evaluation),
    /// The model continued a fixed prompt.
    Sample(Sample),
    /// The run was saved and can go on from here.
    Checkpoint(Checkpoint),
    /// Something that the user should know.
    Notice(Notice),
    /// The run is over.
    Finished(Finished),
}

/// How a run begins.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Started {
    /// Steps made before; more than 0 where a run goes on.
    pub step: u64,
    /// Steps in the whole run.
    pub total_steps: u64,
    /// When, in seconds since 1970.
    #[serde(deserialize_with = "or_nan")]
    pub unix_seconds: f64,
    /// The model as the user names it.
    pub model: String,
    /// The method for people: `LoRA, rank 8`.
    pub method: String,
    /// The device.
    pub device: String,
    /// The type of the model's weights.
    pub dtype: String,
    /// Parameters of the model.
    pub parameters: u64,
    /// How many parameters are trained.
    pub trainable: u64,
    /// What is known of the data: an object, shown as it is.
    pub data: serde_json::Value,
    /// Every setting of the run, defaults too: an object, shown as it is.
    pub config: serde_json::Value,
}

/// One optimizer step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Step {
    /// From 1.
    pub step: u64,
    /// Passes over the data so far, with the part of the current one.
    #[serde(deserialize_with = "or_nan")]
    pub epoch: f64,
    /// Mean of −log p over the step's targets.
    #[serde(deserialize_with = "or_nan")]
    pub loss: f64,
    /// The learning rate that the step used.
    #[serde(deserialize_with = "or_nan")]
    pub learning_rate: f64,
    /// Of all gradients together, before they were clipped.
    #[serde(deserialize_with = "or_nan")]
    pub gradient_norm: f64,
    /// Whether the gradients were made smaller.
    pub clipped: bool,
    /// Tokens that the model read, without padding.
    pub tokens: u64,
    /// Tokens whose prediction counted.
    pub targets: u64,
    /// What the step took.
    #[serde(deserialize_with = "or_nan")]
    pub seconds: f64,
    /// Tokens over seconds.
    #[serde(deserialize_with = "or_nan")]
    pub tokens_per_second: f64,
    /// The most memory used so far: the device's, or what the process had resident. 0 where it cannot be told.
    pub memory_bytes: u64,
}

/// A measurement on other data.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Evaluation {
    /// After this step; 0 is before the first.
    pub step: u64,
    /// What it was measured on.
    pub split: Split,
    /// Mean of −log p over the counted tokens.
    #[serde(deserialize_with = "or_nan")]
    pub loss: f64,
    /// e to the loss.
    #[serde(deserialize_with = "or_nan")]
    pub perplexity: f64,
    /// Whether no evaluation before was better.
    pub best: bool,
}

/// Data that the model does not learn from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Decides which step was best.
    #[default]
    Validation,
    /// Measured once, at the end.
    Test,
}

/// What the model made of a fixed prompt.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// After this step.
    pub step: u64,
    /// With the adapter or without.
    pub speaker: Speaker,
    /// What was given.
    pub prompt: String,
    /// What the model made of it.
    pub text: String,
}

/// Who continued a prompt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Speaker {
    /// The model as it was before training.
    Base,
    /// The model as it is now.
    #[default]
    Trained,
}

/// A saved state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Checkpoint {
    /// After this step.
    pub step: u64,
    /// Where.
    pub path: String,
}

/// A remark.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Notice {
    /// After this step.
    pub step: u64,
    /// The remark.
    pub text: String,
}

/// How a run ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Finished {
    /// Steps made.
    pub steps: u64,
    /// The best evaluation on validation data.
    pub best: Option<Evaluation>,
    /// What the run took, since it last began.
    #[serde(deserialize_with = "or_nan")]
    pub seconds: f64,
    /// Why it ended.
    pub stopped: Stopped,
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stopped {
    /// All steps were made.
    #[default]
    Complete,
    /// The validation loss no longer fell.
    EarlyStopping,
    /// The user or an observer asked for it.
    Interrupted,
    /// A loss or gradient was not finite.
    NotFinite,
}

impl TrainEvent {
    /// The number of steps made when it happened.
    pub fn step(&self) -> u64 {
        match self {
            Self::Started(started) => started.step,
            Self::Step(step) => step.step,
            Self::Evaluation(evaluation) => evaluation.step,
            Self::Sample(sample) => sample.step,
            Self::Checkpoint(checkpoint) => checkpoint.step,
            Self::Notice(notice) => notice.step,
            Self::Finished(finished) => finished.steps,
        }
    }
}

/// Watches a run. `Break` asks it to stop after the current step, an error ends it at once. Closures are observers too.
pub trait Observer {
    /// Called at each event, in order.
    fn event(&mut self, event: &TrainEvent) -> Result<ControlFlow<()>>;
}

impl<F: FnMut(&TrainEvent) -> Result<ControlFlow<()>>> Observer for F {
    fn event(&mut self, event: &TrainEvent) -> Result<ControlFlow<()>> {
        self(event)
    }
}

/// Several observers, told one after another. All hear an event even if one of them asks to stop.
#[derive(Default)]
pub struct Observers<'run>(Vec<Box<dyn Observer + 'run>>);

impl<'run> Observers<'run> {
    /// Adds one.
    pub fn push(&mut self, observer: impl Observer + 'run) {
        self.0.push(Box::new(observer));
    }
}

impl Observer for Observers<'_> {
    fn event(&mut self, event: &TrainEvent) -> Result<ControlFlow<()>> {
        let mut flow = ControlFlow::Continue(());
        for observer in &mut self.0 {
            if observer.event(event)?.is_break() {
                flow = ControlFlow::Break(());
            }
        }
        Ok(flow)
    }
}

/// JSON has no numbers that are not finite: they are written as `null`.
fn or_nan<'json, D: Deserializer<'json>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_tagged_objects_and_come_back() {
        let step = Step { step: 7, loss: 1.5, tokens: 4096, clipped: true, ..Step::default() };
        let finished = Finished { steps: 7, stopped: Stopped::EarlyStopping, ..Finished::default() };
        let best = Evaluation { step: 5, best: true, split: Split::Test, ..Evaluation::default() };
        let events = [
            TrainEvent::Started(Started { data: serde_json::json!({"lines": 3}), ..Started::default() }),
            TrainEvent::Step(step),
            TrainEvent::Evaluation(best.clone()),
            TrainEvent::Sample(Sample {
                speaker: Speaker::Base,
                text: "ü\n".to_owned(),
                ..Sample::default()
            }),
            TrainEvent::Checkpoint(Checkpoint { step: 7, path: "a".to_owned() }),
            TrainEvent::Notice(Notice { step: 7, text: "b".to_owned() }),
            TrainEvent::Finished(Finished { best: Some(best), ..finished }),
        ];
        let kinds = ["started", "step", "evaluation", "sample", "checkpoint", "notice", "finished"];
        for (event, kind) in events.iter().zip(kinds) {
            let line = serde_json::to_string(event).unwrap();
            assert!(line.starts_with(&format!("{{\"event\":\"{kind}\"")), "{line}");
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<TrainEvent>(&line).unwrap(), *event);
        }
    }

    #[test]
    fn numbers_that_are_not_finite_are_null() {
        for loss in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let line = serde_json::to_string(&TrainEvent::Step(Step { loss, ..Step::default() })).unwrap();
            assert!(line.contains("\"loss\":null"), "{line}");
            let TrainEvent::Step(step) = serde_json::from_str(&line).unwrap() else { panic!("{line}") };
            assert!(step.loss.is_nan());
        }
    }

    #[test]
    fn all_observers_hear_an_event_that_one_of_them_stops_at() {
        let (mut first, mut second) = (0, 0);
        let mut observers = Observers::default();
        observers.push(|_: &TrainEvent| {
            first += 1;
            Ok(ControlFlow::Break(()))
        });
        observers.push(|_: &TrainEvent| {
            second += 1;
            Ok(ControlFlow::Continue(()))
        });
        assert!(observers.event(&TrainEvent::Notice(Notice::default())).unwrap().is_break());
        drop(observers);
        assert_eq!((first, second), (1, 1));
    }
}
