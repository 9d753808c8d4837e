//! A training run on stderr: a bar on a terminal, a line every so many steps elsewhere.

use std::ops::ControlFlow;

use indicatif::ProgressBar;
use metal_candle::{
    Result,
    train::{
        events::{Evaluation, Finished, Observer, Sample, Speaker, Split, Step, Stopped, TrainEvent},
        report::{bucket_means, smooth},
    },
};

use super::sparkline::{sparkline, unicode_terminal};
use crate::console::Console;

/// How much the past counts less with each step.
const DECAY: f64 = 0.95;
/// Of a sample, characters on the terminal; the report has all of it.
const SAMPLE_CHARACTERS: usize = 160;

/// Shows a run while it goes on.
pub(crate) struct Progress<'run> {
    console: &'run Console,
    /// Hidden unless stderr is a terminal.
    bar: ProgressBar,
    story: Story,
}

impl<'run> Progress<'run> {
    /// Without a terminal, a line every `steps_per_report` steps.
    pub(crate) fn new(console: &'run Console, steps_per_report: u64) -> Self {
        let bar = console.step_bar();
        let every = bar.is_hidden().then_some(steps_per_report.max(1));
        Self { console, bar, story: Story::new(every, unicode_terminal()) }
    }
}

impl Observer for Progress<'_> {
    fn event(&mut self, event: &TrainEvent) -> Result<ControlFlow<()>> {
        let lines = self.story.hear(event);
        match event {
            TrainEvent::Started(started) => {
                self.bar.set_length(started.total_steps);
                self.bar.set_position(started.step);
            }
            TrainEvent::Step(step) => {
                self.bar.set_position(step.step);
                self.bar.set_message(self.story.now(step));
            }
            TrainEvent::Finished(_) => self.bar.finish_and_clear(),
            _ => {}
        }
        if !lines.is_empty() {
            self.bar.suspend(|| self.console.note(lines.join("\n")));
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// What there is to say, apart from where.
struct Story {
    /// None where a bar shows the steps.
    every: Option<u64>,
    unicode: bool,
    total_steps: u64,
    recent: Recent,
    /// Loss times targets, and targets, since the last line.
    unsaid: (f64, u64),
    losses: Vec<f64>,
}

/// Sums over the last steps, in which older ones count less.
#[derive(Default)]
struct Recent {
    steps: f64,
    tokens: f64,
    seconds: f64,
}

impl Recent {
    fn add(&mut self, step: &Step) {
        if !step.seconds.is_finite() {
            return;
        }
        self.steps = self.steps * DECAY + 1.0;
        self.tokens = self.tokens * DECAY + step.tokens as f64;
        self.seconds = self.seconds * DECAY + step.seconds;
    }

    fn tokens_per_second(&self) -> f64 {
        self.tokens / self.seconds.max(1e-9)
    }

    fn seconds_for(&self, steps: u64) -> f64 {
        steps as f64 * self.seconds / self.steps.max(1.0)
    }
}

impl Story {
    fn new(every: Option<u64>, unicode: bool) -> Self {
        let (total_steps, recent, unsaid, losses) = (0, Recent::default(), (0.0, 0), Vec::new());
        Self { every, unicode, total_steps, recent, unsaid, losses }
    }

    /// The lines that an event is worth.
    fn hear(&mut self, event: &TrainEvent) -> Vec<String> {
        match event {
            TrainEvent::Started(started) => {
                self.total_steps = started.total_steps;
                if started.step == 0 {
                    return Vec::new();
                }
                vec![format!("going on after step {} of {}", started.step, started.total_steps)]
            }
            TrainEvent::Step(step) => self.step(step),
            TrainEvent::Evaluation(evaluation) => vec![said_evaluation(evaluation)],
            TrainEvent::Sample(sample) => vec![said_sample(sample)],
            TrainEvent::Checkpoint(checkpoint) => {
                vec![format!("step {}  saved {}", checkpoint.step, on_one_line(&checkpoint.path, usize::MAX))]
            }
            TrainEvent::Notice(notice) => vec![on_one_line(&notice.text, usize::MAX)],
            TrainEvent::Finished(finished) => self.end(finished),
        }
    }

    fn step(&mut self, step: &Step) -> Vec<String> {
        self.recent.add(step);
        self.losses.push(step.loss);
        self.unsaid.0 += step.loss * step.targets as f64;
        self.unsaid.1 += step.targets;
        let due =
            self.every.is_some_and(|every| step.step.is_multiple_of(every) || step.step == self.total_steps);
        if !due {
            return Vec::new();
        }
        let (sum, targets) = std::mem::take(&mut self.unsaid);
        let loss = if targets == 0 { step.loss } else { sum / targets as f64 };
        vec![format!("step {}/{}  {}", step.step, self.total_steps, self.numbers(loss, step))]
    }

    /// The numbers beside the bar.
    fn now(&self, step: &Step) -> String {
        let recent = &self.losses[self.losses.len().saturating_sub(10)..];
        let loss = bucket_means(recent, 1).first().copied().unwrap_or(step.loss);
        // A loss that is no number any more is not to be hidden in a mean.
        self.numbers(if step.loss.is_finite() { loss } else { step.loss }, step)
    }

    fn numbers(&self, loss: f64, step: &Step) -> String {
        let rate =
            if step.learning_rate == 0.0 { "0".to_owned() } else { format!("{:.1e}", step.learning_rate) };
        let mut text = format!("loss {loss:.3}  lr {rate}  {:.0} tok/s", self.recent.tokens_per_second());
        if step.memory_bytes > 0 {
            text += &format!("  {}", memory(step.memory_bytes));
        }
        let left = self.recent.seconds_for(self.total_steps.saturating_sub(step.step));
        text + &format!("  eta {}", duration(left))
    }

    fn end(&self, finished: &Finished) -> Vec<String> {
        let mut lines = Vec::new();
        if self.losses.len() > 1 {
            // At both ends the mean of some steps: single ones say little.
            let smoothed = smooth(&self.losses, self.losses.len() / 20);
            let (first, last) = (smoothed[0], smoothed[smoothed.len() - 1]);
            lines.push(format!("loss {first:.3} {} {last:.3}", sparkline(&self.losses, self.unicode)));
        }
        let time = duration(finished.seconds);
        let how = match finished.stopped {
            Stopped::Complete => format!("{} steps in {time}", finished.steps),
            Stopped::EarlyStopping => {
                format!(
                    "stopped early after {} steps and {time}: the validation loss no longer fell",
                    finished.steps
                )
            }
            Stopped::Interrupted => format!("interrupted after {} steps and {time}", finished.steps),
            Stopped::NotFinite => {
                format!("stopped after {} steps: the loss or a gradient was not finite", finished.steps)
            }
        };
        let best = finished.best.as_ref();
        let best = best.map(|best| format!("; best validation loss {:.3} at step {}", best.loss, best.step));
        lines.push(how + &best.unwrap_or_default());
        lines
    }
}

fn said_evaluation(evaluation: &Evaluation) -> String {
    let Evaluation { step, split, loss, perplexity, best } = evaluation;
    let split = match split {
        Split::Validation => "validation",
        Split::Test => "test",
    };
    let best = if *best { "  best so far" } else { "" };
    format!("step {step}  {split} loss {loss:.3}  perplexity {perplexity:.2}{best}")
}

fn said_sample(sample: &Sample) -> String {
    let speaker = match sample.speaker {
        Speaker::Base => "before training".to_owned(),
        Speaker::Trained => format!("step {}", sample.step),
    };
    let prompt = on_one_line(&sample.prompt, SAMPLE_CHARACTERS / 4);
    format!("{speaker}  {prompt} > {}", on_one_line(&sample.text, SAMPLE_CHARACTERS))
}

/// Text that moves no cursor and changes no colour.
fn on_one_line(text: &str, most: usize) -> String {
    let plain: String =
        text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect();
    let words: Vec<&str> = plain.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

fn memory(bytes: u64) -> String {
    let bytes = bytes as f64;
    if bytes >= 1e10 { format!("{:.1} GB", bytes / 1e9) } else { format!("{:.0} MB", bytes / 1e6) }
}

/// `45s`, `1m20s`, `2h05m`
fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{whole}s"),
        60..3600 => format!("{}m{:02}s", whole / 60, whole % 60),
        _ => format!("{}h{:02}m", whole / 3600, whole / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use metal_candle::train::events::{Notice, Started};

    use super::*;

    fn step(step: u64, loss: f64) -> TrainEvent {
        TrainEvent::Step(Step {
            step,
            loss,
            learning_rate: 1e-4,
            tokens: 1234,
            targets: 100,
            seconds: 1.0,
            memory_bytes: 812_400_000,
            ..Step::default()
        })
    }

    fn story(every: Option<u64>, total_steps: u64) -> Story {
        let mut story = Story::new(every, true);
        let started = TrainEvent::Started(Started { total_steps, ..Started::default() });
        assert!(story.hear(&started).is_empty());
        story
    }

    #[test]
    fn in_a_pipe_there_is_a_line_every_so_many_steps_and_one_at_the_end() {
        let mut story = story(Some(10), 90);
        let lines: Vec<Vec<String>> =
            (1..=90).map(|at| story.hear(&step(at, 4.0 - 0.1 * (at % 10) as f64))).collect();
        let lines = lines.concat();
        assert_eq!(lines.len(), 9);
        assert_eq!(lines[0], "step 10/90  loss 3.550  lr 1.0e-4  1234 tok/s  812 MB  eta 1m20s");
        assert_eq!(lines[8], "step 90/90  loss 3.550  lr 1.0e-4  1234 tok/s  812 MB  eta 0s");
        let mut story = Story::new(Some(10), true);
        story.total_steps = 13;
        assert_eq!(
            (1..=13).filter(|&at| !story.hear(&step(at, 1.0)).is_empty()).collect::<Vec<_>>(),
            [10, 13]
        );
    }

    #[test]
    fn beside_a_bar_steps_are_no_lines() {
        let mut story = story(None, 100);
        for at in 1..=20 {
            assert!(story.hear(&step(at, 2.0)).is_empty());
        }
        let TrainEvent::Step(last) = step(20, 2.0) else { unreachable!() };
        assert_eq!(story.now(&last), "loss 2.000  lr 1.0e-4  1234 tok/s  812 MB  eta 1m20s");
        let broken = Step { loss: f64::NAN, ..last };
        assert!(story.now(&broken).starts_with("loss NaN"));
    }

    #[test]
    fn the_end_shows_the_curve_and_the_best() {
        let mut story = story(None, 3);
        for (at, loss) in [(1, 3.0), (2, 2.0), (3, 1.0)] {
            story.hear(&step(at, loss));
        }
        let best = Some(Evaluation { step: 2, loss: 1.5, ..Evaluation::default() });
        let finished = Finished { steps: 3, best, seconds: 75.0, stopped: Stopped::Complete };
        assert_eq!(
            story.hear(&TrainEvent::Finished(finished)),
            ["loss 3.000 █▅▁ 1.000", "3 steps in 1m15s; best validation loss 1.500 at step 2"]
        );
    }

    #[test]
    fn a_run_without_steps_ends_without_a_curve() {
        let lines = story(Some(1), 0).hear(&TrainEvent::Finished(Finished::default()));
        assert_eq!(lines, ["0 steps in 0s"]);
    }

    #[test]
    fn text_of_models_cannot_steer_the_terminal() {
        let sample = Sample {
            step: 3,
            prompt: "Say\nit".to_owned(),
            text: format!("a\u{1b}[31mb\r\n{}", "c".repeat(500)),
            ..Sample::default()
        };
        let lines = story(None, 9).hear(&TrainEvent::Sample(sample));
        assert!(lines[0].starts_with("step 3  Say it > a [31mb ccc"), "{lines:?}");
        assert!(lines[0].len() < 220 && lines[0].ends_with("c..."));
        let notice = TrainEvent::Notice(Notice { step: 0, text: "\u{9b}2Jx".to_owned() });
        assert_eq!(story(None, 9).hear(&notice), ["2Jx"]);
    }
}
