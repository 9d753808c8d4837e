//! What a diagram shows, apart from how it is drawn: the page and the picture draw the same.

use super::{
    History,
    series::{decimate, quantiles, smooth},
};
use crate::train::events::Step;

/// No diagram is so wide that more could be told apart.
const COLUMNS: usize = 500;
/// With fewer steps a smoothed line says nothing.
const SMOOTHED_FROM: usize = 16;

/// Values over steps.
#[derive(Debug)]
pub(super) struct Plot {
    pub(super) title: &'static str,
    /// Of the values, as far as the title does not say it.
    pub(super) unit: &'static str,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) lines: Vec<Line>,
    /// The best evaluation.
    pub(super) best: Option<(f64, f64)>,
    /// Steps whose value is not finite.
    pub(super) broken: Vec<f64>,
    /// Steps after which the run went on.
    pub(super) resumed: Vec<f64>,
}

/// One line of a diagram.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) role: Role,
    /// With gaps where a value is not finite.
    pub(super) points: Vec<(f64, f64)>,
}

/// What a line stands for, and so how it looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Every step, where there is a smoothed line too.
    Raw,
    /// The main line.
    Main,
    /// Evaluations.
    Evaluation,
}

/// A range and the marks on it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    pub(super) low: f64,
    pub(super) high: f64,
    /// Values and how they are written.
    pub(super) ticks: Vec<(f64, String)>,
}

impl Plot {
    pub(super) fn loss(history: &History) -> Self {
        let evaluations: Vec<(f64, f64)> =
            history.evaluations.iter().map(|evaluation| (evaluation.step as f64, evaluation.loss)).collect();
        let mut plot = Self::of_steps(history, "Loss", "", |step| step.loss);
        if !evaluations.is_empty() {
            plot.lines.push(Line { role: Role::Evaluation, points: evaluations });
        }
        plot.best = history.best().map(|best| (best.step as f64, best.loss));
        plot.y = plot.visible_range(&history.losses());
        plot
    }

    pub(super) fn learning_rate(history: &History) -> Self {
        let mut plot = Self::of_steps(history, "Learning rate", "", |step| step.learning_rate);
        // Exact, so nothing to smooth.
        plot.keep_exact_line(history, |step| step.learning_rate);
        plot.starting_at_zero()
    }

    pub(super) fn throughput(history: &History) -> Self {
        Self::of_steps(history, "Throughput", "tokens/s", |step| step.tokens_per_second).starting_at_zero()
    }

    pub(super) fn gradient_norm(history: &History) -> Self {
        let mut plot = Self::of_steps(history, "Gradient norm", "before clipping", |step| step.gradient_norm);
        let norms: Vec<f64> = history.steps.iter().map(|step| step.gradient_norm).collect();
        plot.y = plot.visible_range(&norms);
        plot.starting_at_zero()
    }

    /// None where it was not measured.
    pub(super) fn memory(history: &History) -> Option<Self> {
        let most = history.steps.iter().map(|step| step.memory_bytes).max().filter(|&most| most > 0)?;
        let (unit, size) = if most >= 2_000_000_000 { ("GB", 1e9) } else { ("MB", 1e6) };
        let value = move |step: &Step| step.memory_bytes as f64 / size;
        let mut plot = Self::of_steps(history, "Peak memory", unit, value);
        plot.keep_exact_line(history, value);
        Some(plot.starting_at_zero())
    }

    fn of_steps(
        history: &History,
        title: &'static str,
        unit: &'static str,
        value: impl Fn(&Step) -> f64,
    ) -> Self {
        let points = points(history, &value);
        let broken = points.iter().filter(|point| !point.1.is_finite()).map(|point| point.0).collect();
        let mut lines = Vec::new();
        if points.len() >= SMOOTHED_FROM {
            let values: Vec<f64> = points.iter().map(|point| point.1).collect();
            let reach = (points.len() / 40).clamp(3, 500);
            // Twice: a mean of means has no corners.
            let smoothed = smooth(&smooth(&values, reach), reach);
            let smoothed: Vec<_> =
                points.iter().zip(smoothed).map(|(point, value)| (point.0, value)).collect();
            lines.push(Line { role: Role::Raw, points: decimate(&points, COLUMNS) });
            lines.push(Line { role: Role::Main, points: decimate(&smoothed, COLUMNS) });
        } else {
            lines.push(Line { role: Role::Main, points });
        }
        let last = history.steps.last().map_or(0, |step| step.step);
        let planned = history.started.as_ref().map_or(0, |started| started.total_steps);
        // While it runs, the empty part of the diagram shows how much is left.
        let end = if history.finished.is_some() { last } else { last.max(planned) };
        let resumed = history.resumed.iter().map(|&step| step as f64).collect();
        let mut plot = Self {
            title,
            unit,
            x: Axis::new(0.0, end.max(1) as f64, 6),
            y: Axis::new(0.0, 1.0, 5),
            lines,
            best: None,
            broken,
            resumed,
        };
        plot.y = plot.visible_range(&[]);
        plot
    }

    /// Only the values as they are.
    fn keep_exact_line(&mut self, history: &History, value: impl Fn(&Step) -> f64) {
        self.lines = vec![Line { role: Role::Main, points: decimate(&points(history, &value), COLUMNS) }];
        self.y = self.visible_range(&[]);
    }

    fn starting_at_zero(mut self) -> Self {
        self.y = Axis::new(0.0, if self.y.high > 0.0 { self.y.high } else { 1.0 }, 5);
        self
    }

    /// All of the lines, but of `raw`, if any is given, not the rarest peaks: one bad step must not flatten the rest.
    fn visible_range(&self, raw: &[f64]) -> Axis {
        let drawn = self.lines.iter().filter(|line| raw.is_empty() || line.role != Role::Raw);
        let mut values: Vec<f64> = drawn.flat_map(|line| line.points.iter().map(|point| point.1)).collect();
        if self.lines.iter().any(|line| line.role == Role::Raw) {
            values.extend(quantiles(raw, [0.005, 0.995]).into_iter().flatten());
        }
        match quantiles(&values, [0.0, 1.0]) {
            None => Axis::new(0.0, 1.0, 5),
            Some([low, high]) => {
                let room = if high > low { 0.06 * (high - low) } else { (0.1 * high.abs()).max(1e-9) };
                // No loss, rate or size is below 0.
                Axis::new(if low >= 0.0 { (low - room).max(0.0) } else { low - room }, high + room, 6)
            }
        }
    }
}

fn points(history: &History, value: &impl Fn(&Step) -> f64) -> Vec<(f64, f64)> {
    history.steps.iter().map(|step| (step.step as f64, value(step))).collect()
}

impl Axis {
    /// With about so many ticks at round values.
    pub(super) fn new(low: f64, high: f64, about: usize) -> Self {
        let step = round_step((high - low) / about as f64);
        let first = (low / step - 1e-6).ceil() as i64;
        let last = (high / step + 1e-6).floor() as i64;
        let largest = low.abs().max(high.abs());
        let ticks = (first..=last).map(|index| index as f64 * step);
        let ticks = ticks.map(|value| (value, tick_label(value, step, largest))).collect();
        Self { low, high, ticks }
    }

    /// Where a value lies between the ends, 0 to 1; beyond them it is at the end.
    pub(super) fn place(&self, value: f64) -> f64 {
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }
}

/// 1, 2 or 5 times a power of ten, at least `least`.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= least * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

fn tick_label(value: f64, step: f64, largest: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let (scale, suffix) = match largest {
        ..0.01 => {
            // The same power for all ticks of an axis.
            let exponent = largest.log10().floor();
            (10f64.powf(exponent), format!("e{exponent}"))
        }
        1e6.. => (1e6, "M".to_owned()),
        1e4.. => (1e3, "k".to_owned()),
        _ => (1.0, String::new()),
    };
    let decimals = (-(step / scale).log10().floor() + 1e-9).max(0.0) as usize;
    let number = format!("{:.decimals$}", value / scale);
    let short = if decimals > 0 && suffix.starts_with('e') {
        number.trim_end_matches('0').trim_end_matches('.')
    } else {
        &number
    };
    format!("{short}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::events::{Evaluation, Started, TrainEvent};

    fn labels(low: f64, high: f64) -> Vec<String> {
        Axis::new(low, high, 4).ticks.into_iter().map(|tick| tick.1).collect()
    }

    #[test]
    fn ticks_are_round_and_short() {
        assert_eq!(labels(0.0, 1.0), ["0", "0.5", "1.0"]);
        assert_eq!(labels(1.93, 3.41), ["2.0", "2.5", "3.0"]);
        assert_eq!(labels(0.0, 2e-4), ["0", "0.5e-4", "1e-4", "1.5e-4", "2e-4"]);
        assert_eq!(labels(0.0, 100_000.0), ["0", "50k", "100k"]);
        assert_eq!(labels(0.0, 2_000_000.0), ["0", "0.5M", "1.0M", "1.5M", "2.0M"]);
        assert_eq!(labels(0.0, 812.0), ["0", "500"]);
    }

    #[test]
    fn values_lie_between_the_ends() {
        let axis = Axis::new(2.0, 4.0, 4);
        assert_eq!([1.0, 2.0, 3.0, 9.0].map(|value| axis.place(value)), [0.0, 0.0, 0.5, 1.0]);
    }

    fn history(losses: &[f64]) -> History {
        let mut history = History::default();
        for (index, &loss) in losses.iter().enumerate() {
            let step = Step { step: index as u64 + 1, loss, ..Step::default() };
            history.add(TrainEvent::Step(step));
        }
        history
    }

    #[test]
    fn every_history_has_a_range() {
        let one_bad = [vec![3.0; 500], vec![1e9], vec![3.0; 500]].concat();
        for losses in [vec![], vec![2.0], vec![f64::NAN; 30], vec![0.0; 30], one_bad] {
            let plot = Plot::loss(&history(&losses));
            assert!(plot.y.low < plot.y.high && plot.y.high.is_finite(), "{losses:?}");
            assert!(plot.x.low < plot.x.high);
            assert!(!plot.y.ticks.is_empty());
        }
    }

    #[test]
    fn a_single_bad_step_is_cut_off_and_broken_ones_are_marked() {
        let mut losses: Vec<f64> = (0..2000).map(|step| 3.0 + f64::from(step % 7) * 0.01).collect();
        losses[700] = 50.0;
        losses[900] = f64::NAN;
        let plot = Plot::loss(&history(&losses));
        assert!(plot.y.high < 10.0, "{:?}", plot.y);
        assert_eq!(plot.broken, [901.0]);
    }

    #[test]
    fn a_long_run_is_drawn_with_few_points() {
        let losses: Vec<f64> = (0..100_000).map(|step| 3.0 / (1.0 + f64::from(step) * 1e-4)).collect();
        let mut history = history(&losses);
        history.add(TrainEvent::Started(Started { total_steps: 120_000, ..Started::default() }));
        history.add(TrainEvent::Evaluation(Evaluation { step: 9, loss: 2.5, ..Evaluation::default() }));
        let plot = Plot::loss(&history);
        assert!(plot.lines.iter().all(|line| line.points.len() <= 2 * COLUMNS));
        assert_eq!(plot.best, Some((9.0, 2.5)));
        assert_eq!(plot.x.high, 120_000.0);
    }
}
