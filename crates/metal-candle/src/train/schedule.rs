//! The learning rate of every step: a pure function of its number, so that nothing of it needs saving.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use super::TrainError;

/// How the learning rate changes over a run. Steps count from 0 here.
///
/// With a warm-up of w steps, the rate rises from `warmup_from` at step 0 to `learning_rate` at step w; what follows begins
/// at step w + 1. So do the schedules of mlx-lm.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// The highest rate.
    pub learning_rate: f64,
    /// Steps of a linear rise at the start.
    pub warmup_steps: u64,
    /// Where the rise begins.
    pub warmup_from: f64,
    /// What follows.
    pub decay: Decay,
}

/// How the learning rate falls. Where `steps` is left out, it falls over all that is left of the run.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Decay {
    /// It does not.
    #[default]
    Constant,
    /// Along a line.
    Linear {
        /// The last rate.
        to: f64,
        /// After so many steps.
        steps: Option<u64>,
    },
    /// Along half a wave.
    Cosine {
        /// The last rate.
        to: f64,
        /// After so many steps.
        steps: Option<u64>,
    },
    /// Not until the last steps of the run, then along a line (warm-up, stable, decay).
    Stable {
        /// The last rate.
        to: f64,
        /// The length of the fall.
        steps: u64,
    },
    /// By a factor at every step.
    Exponential {
        /// The factor.
        rate: f64,
    },
    /// By a factor now and then.
    Stairs {
        /// The factor.
        rate: f64,
        /// After so many steps each time.
        every: u64,
    },
}

impl Default for Schedule {
    fn default() -> Self {
        Self::constant(1e-4)
    }
}

impl Schedule {
    /// The same rate at all steps.
    pub fn constant(learning_rate: f64) -> Self {
        Self { learning_rate, warmup_steps: 0, warmup_from: 0.0, decay: Decay::Constant }
    }

    /// The rate of a step, counted from 0, in a run of `steps`.
    pub fn rate(&self, step: u64, steps: u64) -> f32 {
        let peak = self.learning_rate;
        if self.warmup_steps > 0 && step <= self.warmup_steps {
            return between(self.warmup_from, peak, step, self.warmup_steps) as f32;
        }
        let first = if self.warmup_steps > 0 { self.warmup_steps + 1 } else { 0 };
        let (step, left) = (step - first, steps.saturating_sub(first).max(1));
        let rate = match self.decay {
            Decay::Constant => peak,
            Decay::Linear { to, steps } => between(peak, to, step, steps.unwrap_or(left)),
            Decay::Cosine { to, steps } => {
                let steps = steps.unwrap_or(left);
                let done = step.min(steps) as f64 / steps as f64;
                to + (peak - to) * 0.5 * (1.0 + (PI * done).cos())
            }
            Decay::Stable { to, steps } => {
                let fall = steps.min(left);
                between(peak, to, (step + fall).saturating_sub(left), fall)
            }
            Decay::Exponential { rate } => peak * rate.powf(step as f64),
            Decay::Stairs { rate, every } => peak * rate.powf((step / every) as f64),
        };
        rate as f32
    }

    /// Whether every number is in its range.
    pub fn check(&self) -> Result<(), TrainError> {
        let rate = |name, value: f64| {
            let good = value >= 0.0 && value.is_finite();
            let expected = "it must be a number from 0 on";
            if good { Ok(()) } else { Err(TrainError::Setting { name, value: value.to_string(), expected }) }
        };
        let steps = |name, value: Option<u64>| match value {
            Some(0) => {
                Err(TrainError::Setting { name, value: "0".to_owned(), expected: "it must be at least 1" })
            }
            _ => Ok(()),
        };
        rate("learning_rate", self.learning_rate)?;
        rate("warmup_from", self.warmup_from)?;
        match self.decay {
            Decay::Constant => Ok(()),
            Decay::Linear { to, steps: over } | Decay::Cosine { to, steps: over } => {
                rate("decay.to", to)?;
                steps("decay.steps", over)
            }
            Decay::Stable { to, steps: over } => {
                rate("decay.to", to)?;
                steps("decay.steps", Some(over))
            }
            Decay::Exponential { rate: factor } => rate("decay.rate", factor),
            Decay::Stairs { rate: factor, every } => {
                rate("decay.rate", factor)?;
                steps("decay.every", Some(every))
            }
        }
    }
}

/// The point of a line from `from` to `to`, reached after `steps`.
fn between(from: f64, to: f64, step: u64, steps: u64) -> f64 {
    let step = step.min(steps);
    if step == steps { to } else { from + (to - from) * (step as f64 / steps as f64) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn rates(schedule: &Schedule, steps: u64, at: &[u64]) -> Vec<f32> {
        at.iter().map(|&step| schedule.rate(step, steps)).collect()
    }

    fn near(found: &[f32], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            let error = (f64::from(*found) - expected).abs();
            assert!(error <= 1e-7 * expected.abs().max(1e-9), "{found} {expected}");
        }
    }

    fn decaying(learning_rate: f64, decay: Decay) -> Schedule {
        Schedule { decay, ..Schedule::constant(learning_rate) }
    }

    #[test]
    fn every_form_has_its_values_at_the_ends_and_between() {
        near(&rates(&Schedule::constant(0.3), 10, &[0, 5, 99]), &[0.3, 0.3, 0.3]);
        let linear = decaying(1.0, Decay::Linear { to: 0.2, steps: Some(4) });
        near(&rates(&linear, 100, &[0, 1, 2, 4, 5, 50]), &[1.0, 0.8, 0.6, 0.2, 0.2, 0.2]);
        let whole = decaying(1.0, Decay::Linear { to: 0.0, steps: None });
        near(&rates(&whole, 10, &[0, 5, 9, 10]), &[1.0, 0.5, 0.1, 0.0]);
        let cosine = decaying(1.0, Decay::Cosine { to: 0.1, steps: Some(6) });
        // cos of 0, 60, 90, 120 and 180 degrees.
        near(&rates(&cosine, 100, &[0, 2, 3, 4, 6, 7]), &[1.0, 0.775, 0.55, 0.325, 0.1, 0.1]);
        let stable = decaying(1.0, Decay::Stable { to: 0.0, steps: 4 });
        near(&rates(&stable, 10, &[0, 6, 7, 8, 9, 10]), &[1.0, 1.0, 0.75, 0.5, 0.25, 0.0]);
        near(&rates(&decaying(1.0, Decay::Exponential { rate: 0.5 }), 9, &[0, 1, 3]), &[1.0, 0.5, 0.125]);
        let stairs = decaying(0.1, Decay::Stairs { rate: 0.9, every: 10 });
        near(&rates(&stairs, 30, &[0, 9, 10, 19, 20]), &[0.1, 0.1, 0.09, 0.09, 0.081]);
    }

    #[test]
    fn a_warm_up_comes_first_and_the_rest_counts_from_its_end() {
        let schedule = Schedule {
            learning_rate: 1.0,
            warmup_steps: 4,
            warmup_from: 0.2,
            decay: Decay::Linear { to: 0.0, steps: Some(5) },
        };
        near(&rates(&schedule, 20, &[0, 1, 4, 5, 6, 10, 15]), &[0.2, 0.4, 1.0, 1.0, 0.8, 0.0, 0.0]);
        // mlx.optimizers' own example: 12 updates, warm-up over 10, then a cosine over 200.
        let joined = Schedule {
            learning_rate: 0.1,
            warmup_steps: 10,
            warmup_from: 0.0,
            decay: Decay::Cosine { to: 0.0, steps: Some(200) },
        };
        near(&rates(&joined, 999, &[0, 5, 10, 11]), &[0.0, 0.05, 0.1, 0.1]);
        assert!((joined.rate(12, 999) - 0.099_993_8).abs() < 1e-6);
    }

    #[test]
    fn a_run_that_ends_within_the_warm_up_has_no_fall() {
        let decays = [
            Decay::Linear { to: 0.0, steps: None },
            Decay::Cosine { to: 0.0, steps: None },
            Decay::Stable { to: 0.0, steps: 5 },
        ];
        for decay in decays {
            let schedule = Schedule { warmup_steps: 10, ..decaying(1.0, decay) };
            near(&rates(&schedule, 5, &[0, 4]), &[0.0, 0.4]);
            assert!(schedule.rate(11, 5).is_finite());
        }
    }

    #[test]
    fn numbers_out_of_range_are_named() {
        let good = Schedule::default();
        assert!(good.check().is_ok());
        for (schedule, name) in [
            (Schedule { learning_rate: f64::NAN, ..good }, "learning_rate is NaN"),
            (Schedule { learning_rate: -1.0, ..good }, "learning_rate is -1"),
            (Schedule { warmup_from: f64::INFINITY, ..good }, "warmup_from is inf"),
            (decaying(1.0, Decay::Linear { to: -1.0, steps: None }), "decay.to is -1"),
            (decaying(1.0, Decay::Cosine { to: 0.0, steps: Some(0) }), "decay.steps is 0"),
            (decaying(1.0, Decay::Stable { to: 0.0, steps: 0 }), "decay.steps is 0"),
            (decaying(1.0, Decay::Exponential { rate: -0.5 }), "decay.rate is -0.5"),
            (decaying(1.0, Decay::Stairs { rate: 0.5, every: 0 }), "decay.every is 0"),
        ] {
            let message = schedule.check().unwrap_err().to_string();
            assert!(message.starts_with(name), "{message}");
        }
    }

    #[test]
    fn configs_are_read_strictly() {
        let text = r#"{"learning_rate": 0.1, "decay": {"cosine": {"to": 0.01, "steps": null}}}"#;
        let schedule: Schedule = serde_json::from_str(text).unwrap();
        assert_eq!(schedule, decaying(0.1, Decay::Cosine { to: 0.01, steps: None }));
        assert!(serde_json::from_str::<Schedule>(r#"{"learning_rat": 0.1}"#).is_err());
        assert!(serde_json::from_str::<Schedule>(r#"{"decay": {"cosine": {"too": 0.1}}}"#).is_err());
    }
}
