//! The learning rate's schedule: in our terms, or in those of mlx-lm.

use anyhow::{Result, bail};
use metal_candle::train::{Decay, Schedule};

use super::settings::{LrSchedule, ScheduleName, Settings};

/// The schedule that the settings stand for.
pub(crate) fn resolve(settings: &Settings) -> Result<Schedule> {
    let own = [
        ("schedule", settings.schedule.is_some()),
        ("warmup_steps", settings.warmup_steps.is_some()),
        ("decay_steps", settings.decay_steps.is_some()),
        ("min_learning_rate", settings.min_learning_rate.is_some()),
    ];
    if let Some(theirs) = &settings.lr_schedule {
        if let Some((name, _)) = own.into_iter().find(|(_, given)| *given) {
            bail!("{name} and lr_schedule are both given; leave one out");
        }
        let schedule = of_mlx(theirs)?;
        return match settings.learning_rate {
            Some(rate) if rate != schedule.learning_rate => bail!(
                "learning_rate is {rate}, and lr_schedule begins with {}; leave one out",
                schedule.learning_rate
            ),
            _ => Ok(schedule),
        };
    }
    let (to, steps) = (settings.min_learning_rate.unwrap_or(0.0), settings.decay_steps);
    let decay = match settings.schedule.unwrap_or(ScheduleName::Constant) {
        ScheduleName::Constant => {
            if let Some((name, _)) = own[2..].iter().find(|(_, given)| *given) {
                bail!("{name} needs a schedule that falls: linear, cosine or stable");
            }
            Decay::Constant
        }
        ScheduleName::Linear => Decay::Linear { to, steps },
        ScheduleName::Cosine => Decay::Cosine { to, steps },
        ScheduleName::Stable => match steps {
            Some(steps) => Decay::Stable { to, steps },
            None => bail!("the schedule stable needs decay_steps: how long the fall at the end is"),
        },
    };
    Ok(Schedule {
        learning_rate: settings.learning_rate.unwrap_or(1e-5),
        warmup_steps: settings.warmup_steps.unwrap_or(0),
        warmup_from: 0.0,
        decay,
    })
}

/// Schedules by the names and arguments of mlx.optimizers.
fn of_mlx(schedule: &LrSchedule) -> Result<Schedule> {
    let LrSchedule { name, warmup, warmup_init, arguments } = schedule;
    let (learning_rate, decay) = match (name.as_str(), arguments.as_slice()) {
        ("cosine_decay", &[init, steps]) => (init, Decay::Cosine { to: 0.0, steps: Some(whole(steps)?) }),
        ("cosine_decay", &[init, steps, to]) => (init, Decay::Cosine { to, steps: Some(whole(steps)?) }),
        ("linear_schedule", &[init, to, steps]) => (init, Decay::Linear { to, steps: Some(whole(steps)?) }),
        ("exponential_decay", &[init, rate]) => (init, Decay::Exponential { rate }),
        ("step_decay", &[init, rate, every]) => (init, Decay::Stairs { rate, every: whole(every)? }),
        ("cosine_decay", _) => bail!("lr_schedule: cosine_decay takes [init, steps] or [init, steps, end]"),
        ("linear_schedule", _) => bail!("lr_schedule: linear_schedule takes [init, end, steps]"),
        ("exponential_decay", _) => bail!("lr_schedule: exponential_decay takes [init, rate]"),
        ("step_decay", _) => bail!("lr_schedule: step_decay takes [init, rate, steps]"),
        ("join_schedules", _) => bail!(
            "lr_schedule: join_schedules cannot be written in a file; use warmup with one of the others"
        ),
        ("", _) => bail!("lr_schedule has no name"),
        (other, _) => bail!(
            "lr_schedule: there is no {other}; use cosine_decay, linear_schedule, exponential_decay or step_decay"
        ),
    };
    let warmup_steps = warmup.unwrap_or(0);
    if warmup_steps == 0 && warmup_init.is_some_and(|init| init != 0.0) {
        bail!("lr_schedule.warmup_init needs warmup");
    }
    Ok(Schedule { learning_rate, warmup_steps, warmup_from: warmup_init.unwrap_or(0.0), decay })
}

fn whole(number: f64) -> Result<u64> {
    if number >= 1.0 && number.fract() == 0.0 {
        return Ok(number as u64);
    }
    bail!("lr_schedule: {number} is no number of steps")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn mlx(name: &str, arguments: &[f64]) -> LrSchedule {
        LrSchedule { name: name.to_owned(), arguments: arguments.to_vec(), ..LrSchedule::default() }
    }

    fn with(lr_schedule: LrSchedule) -> Result<Schedule> {
        resolve(&Settings { lr_schedule: Some(lr_schedule), ..Settings::default() })
    }

    /// Steps of the schedules of mlx.optimizers 0.32, by their documented formulas.
    #[test]
    fn schedules_of_mlx_have_its_values() {
        let near = |found: f32, expected: f64| {
            assert!((f64::from(found) - expected).abs() <= 1e-6 * expected.abs(), "{found} {expected}");
        };
        let cosine = with(LrSchedule { warmup: Some(10), ..mlx("cosine_decay", &[0.1, 200.0]) }).unwrap();
        near(cosine.rate(1, 1000), 0.01);
        near(cosine.rate(12, 1000), 0.099_993_83);
        let ended = with(mlx("cosine_decay", &[1e-5, 1000.0, 1e-7])).unwrap();
        near(ended.rate(5000, 10_000), 1e-7);
        near(with(mlx("exponential_decay", &[0.1, 0.9])).unwrap().rate(4, 9), 0.065_61);
        near(with(mlx("step_decay", &[0.1, 0.9, 10.0])).unwrap().rate(20, 99), 0.081);
        near(with(mlx("linear_schedule", &[0.1, 0.2, 4.0])).unwrap().rate(1, 99), 0.125);
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        let error = |schedule| with(schedule).unwrap_err().to_string();
        assert!(error(mlx("cosine_decay", &[0.1])).contains("[init, steps]"));
        assert!(error(mlx("join_schedules", &[])).contains("warmup"));
        assert!(error(mlx("cosine", &[])).contains("there is no cosine; use cosine_decay"));
        assert!(error(mlx("step_decay", &[0.1, 0.9, 2.5])).contains("2.5 is no number of steps"));
        let two = Settings {
            lr_schedule: Some(mlx("exponential_decay", &[0.1, 0.9])),
            learning_rate: Some(0.2),
            ..Settings::default()
        };
        assert!(resolve(&two).unwrap_err().to_string().contains("learning_rate is 0.2"));
        let needless = Settings { decay_steps: Some(3), ..Settings::default() };
        assert!(resolve(&needless).unwrap_err().to_string().contains("decay_steps needs a schedule"));
    }

    #[test]
    fn every_flag_of_the_schedule_acts() {
        let settings = Settings {
            schedule: Some(ScheduleName::Cosine),
            learning_rate: Some(0.5),
            warmup_steps: Some(3),
            decay_steps: Some(7),
            min_learning_rate: Some(0.1),
            ..Settings::default()
        };
        let expected = Schedule {
            learning_rate: 0.5,
            warmup_steps: 3,
            warmup_from: 0.0,
            decay: Decay::Cosine { to: 0.1, steps: Some(7) },
        };
        assert_eq!(resolve(&settings).unwrap(), expected);
        assert_eq!(resolve(&Settings::default()).unwrap(), Schedule::constant(1e-5));
        let stable = Settings { schedule: Some(ScheduleName::Stable), ..settings.clone() };
        assert_eq!(resolve(&stable).unwrap().decay, Decay::Stable { to: 0.1, steps: 7 });
        let linear = Settings { schedule: Some(ScheduleName::Linear), decay_steps: None, ..settings };
        assert_eq!(resolve(&linear).unwrap().decay, Decay::Linear { to: 0.1, steps: None });
    }
}
