//! The events of a run by their kind.

use std::{ops::ControlFlow, path::Path};

use super::{ReportError, metrics::lines};
use crate::{
    Result,
    train::events::{
        Checkpoint, Evaluation, Finished, Notice, Observer, Sample, Speaker, Split, Started, Step, TrainEvent,
    },
};

/// All that is known of a run. It is an observer, and can be read from a metrics file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// How it began, or last went on.
    pub started: Option<Started>,
    /// The steps after which it went on.
    pub resumed: Vec<u64>,
    /// Every step.
    pub steps: Vec<Step>,
    /// Evaluations on validation data.
    pub evaluations: Vec<Evaluation>,
    /// The evaluation on test data.
    pub test: Option<Evaluation>,
    /// Every sample.
    pub samples: Vec<Sample>,
    /// Every checkpoint, deleted ones too.
    pub checkpoints: Vec<Checkpoint>,
    /// Every remark.
    pub notices: Vec<Notice>,
    /// How it ended; none while it runs.
    pub finished: Option<Finished>,
}

/// One prompt and what was made of it.
pub(super) struct Comparison<'run> {
    pub(super) prompt: &'run str,
    pub(super) before: Option<&'run Sample>,
    /// In order; the last is the newest.
    pub(super) trained: Vec<&'run Sample>,
}

impl History {
    /// Reads a metrics file. A last line that a crash cut is passed over.
    pub fn read(path: &Path) -> Result<Self, ReportError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ReportError::Read { path: path.to_owned(), source })?;
        let mut history = Self::default();
        for event in lines(path, &text) {
            history.add(event?.1);
        }
        Ok(history)
    }

    /// Adds what happened next.
    pub fn add(&mut self, event: TrainEvent) {
        match event {
            TrainEvent::Started(started) => {
                if started.step > 0 {
                    self.resumed.push(started.step);
                }
                self.started = Some(started);
                self.finished = None;
            }
            TrainEvent::Step(step) => self.steps.push(step),
            TrainEvent::Evaluation(evaluation) => match evaluation.split {
                Split::Validation => self.evaluations.push(evaluation),
                Split::Test => self.test = Some(evaluation),
            },
            TrainEvent::Sample(sample) => self.samples.push(sample),
            TrainEvent::Checkpoint(checkpoint) => self.checkpoints.push(checkpoint),
            TrainEvent::Notice(notice) => self.notices.push(notice),
            TrainEvent::Finished(finished) => self.finished = Some(finished),
        }
    }

    /// The evaluation with the lowest loss; the first of equals.
    pub fn best(&self) -> Option<&Evaluation> {
        let finite = self.evaluations.iter().filter(|evaluation| evaluation.loss.is_finite());
        finite.min_by(|one, other| one.loss.total_cmp(&other.loss))
    }

    /// The losses of all steps.
    pub fn losses(&self) -> Vec<f64> {
        self.steps.iter().map(|step| step.loss).collect()
    }

    /// The samples by their prompt, in the order in which the prompts came.
    pub(super) fn comparisons(&self) -> Vec<Comparison<'_>> {
        let mut comparisons: Vec<Comparison<'_>> = Vec::new();
        for sample in &self.samples {
            let known = comparisons.iter().position(|comparison| comparison.prompt == sample.prompt);
            let index = known.unwrap_or_else(|| {
                comparisons.push(Comparison { prompt: &sample.prompt, before: None, trained: Vec::new() });
                comparisons.len() - 1
            });
            match sample.speaker {
                Speaker::Base => comparisons[index].before = Some(sample),
                Speaker::Trained => comparisons[index].trained.push(sample),
            }
        }
        comparisons
    }
}

impl Observer for History {
    fn event(&mut self, event: &TrainEvent) -> Result<ControlFlow<()>> {
        self.add(event.clone());
        Ok(ControlFlow::Continue(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation(step: u64, loss: f64) -> TrainEvent {
        TrainEvent::Evaluation(Evaluation { step, loss, ..Evaluation::default() })
    }

    #[test]
    fn the_best_evaluation_is_the_first_lowest_one_that_is_a_number() {
        let mut history = History::default();
        assert_eq!(history.best(), None);
        for (step, loss) in [(1, f64::NAN), (2, 3.0), (3, 1.0), (4, 1.0), (5, 2.0)] {
            history.add(evaluation(step, loss));
        }
        assert_eq!(history.best().unwrap().step, 3);
    }

    #[test]
    fn a_run_that_goes_on_is_no_longer_finished() {
        let mut history = History::default();
        history.add(TrainEvent::Started(Started::default()));
        history.add(TrainEvent::Finished(Finished::default()));
        history.add(TrainEvent::Started(Started { step: 5, ..Started::default() }));
        assert_eq!((history.finished, history.resumed), (None, vec![5]));
    }

    #[test]
    fn samples_stand_beside_those_of_the_same_prompt() {
        let mut history = History::default();
        for (prompt, speaker, text) in [
            ("a", Speaker::Base, "1"),
            ("b", Speaker::Base, "2"),
            ("a", Speaker::Trained, "3"),
            ("a", Speaker::Trained, "4"),
        ] {
            let (prompt, text) = (prompt.to_owned(), text.to_owned());
            history.add(TrainEvent::Sample(Sample { step: 0, speaker, prompt, text }));
        }
        let comparisons = history.comparisons();
        assert_eq!(comparisons.len(), 2);
        assert_eq!(comparisons[0].before.unwrap().text, "1");
        assert_eq!(comparisons[0].trained.last().unwrap().text, "4");
        assert!(comparisons[1].trained.is_empty());
    }
}
