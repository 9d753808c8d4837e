//! Writes the metrics, TensorBoard files, page and picture of runs that never took place, to look at them:
//! `cargo run --example made_up_run -- FOLDER`

use std::{error::Error, f64::consts::TAU, fs, path::Path};

use metal_candle::train::{
    events::{
        Checkpoint, Evaluation, Finished, Notice, Observer, Observers, Sample, Speaker, Split, Started, Step,
        Stopped, TrainEvent,
    },
    report::{self, METRICS_FILE, MetricsFile, NextCommand, TensorBoard},
};
use rand::{Rng as _, SeedableRng as _};
use rand_pcg::Pcg64;
use serde_json::json;

/// A run and what happens in it.
struct Plan {
    name: &'static str,
    steps: u64,
    /// Steps that were planned and not made.
    missing: u64,
    evaluate_every: u64,
    resumed_at: u64,
    /// Losses at and after this step are not finite.
    breaks_at: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("name the folder to write to")?;
    let usual = Plan {
        name: "usual",
        steps: 600,
        missing: 0,
        evaluate_every: 50,
        resumed_at: 320,
        breaks_at: u64::MAX,
    };
    let plans = [
        Plan { name: "empty", steps: 0, missing: 100, ..usual },
        Plan { name: "one-step", steps: 1, missing: 99, ..usual },
        Plan { name: "broken", steps: 140, missing: 60, breaks_at: 137, resumed_at: u64::MAX, ..usual },
        Plan { name: "short", steps: 12, missing: 0, evaluate_every: 4, ..usual },
        Plan { name: "long", steps: 100_000, evaluate_every: 1000, resumed_at: 40_000, ..usual },
        usual,
    ];
    for plan in &plans {
        let folder = Path::new(&folder).join(plan.name);
        fs::create_dir_all(&folder)?;
        let mut observers = Observers::default();
        observers.push(MetricsFile::create(&folder.join(METRICS_FILE))?);
        if plan.steps <= 1000 {
            observers.push(TensorBoard::create(&folder.join("tensorboard"))?);
        }
        make_up(plan, &mut observers)?;
        report::write(&folder, &next())?;
    }
    Ok(())
}

fn make_up(plan: &Plan, observer: &mut dyn Observer) -> Result<(), Box<dyn Error>> {
    let mut random = Pcg64::seed_from_u64(7);
    let mut tell = |event: TrainEvent| observer.event(&event).map(|_| ());
    if plan.steps == 0 {
        return Ok(());
    }
    let total_steps = plan.steps + plan.missing;
    tell(TrainEvent::Started(started(0, total_steps)))?;
    tell(TrainEvent::Notice(Notice {
        step: 0,
        text: "3 of 4812 examples were cut to 512 tokens".to_owned(),
    }))?;
    samples(0, Speaker::Base, &mut tell)?;
    let mut best: Option<Evaluation> = None;
    let mut finite = true;
    for step in 0..=plan.steps {
        let share = step as f64 / total_steps as f64;
        let fall = 0.42 * (-9.0 * share).exp() + 0.12 * (1.0 - share);
        if step > 0 {
            let noise: f64 = (0..6).map(|_| random.random_range(-1.0..1.0)).sum::<f64>() / 6.0;
            finite = step < plan.breaks_at;
            let loss = if finite { 1.55 * (1.0 + fall) + 0.35 * noise } else { f64::NAN };
            let tokens = 2048 - random.random_range(0..60);
            let speed = 1210.0 + 60.0 * noise - if step % 97 == 0 { 300.0 } else { 0.0 };
            let warm_up = (step as f64 / (0.05 * total_steps as f64)).min(1.0);
            let gradient_norm = if finite { (0.9 + fall) * (1.0 + 0.5 * noise).abs() } else { f64::NAN };
            tell(TrainEvent::Step(Step {
                step,
                epoch: 3.0 * share,
                loss,
                learning_rate: 2e-4 * warm_up * 0.5 * (1.0 + (TAU / 2.0 * share).cos()),
                gradient_norm,
                clipped: gradient_norm > 1.0,
                tokens,
                targets: tokens / 3,
                seconds: tokens as f64 / speed,
                tokens_per_second: speed,
                memory_bytes: 790_000_000 + (22e6 * (1.0 - (-40.0 * share).exp())) as u64,
            }))?;
        }
        if finite && step % plan.evaluate_every == 0 {
            let loss = 1.62 + 1.55 * fall + 0.35 * (share - 0.62).max(0.0);
            let is_best = best.as_ref().is_none_or(|best| loss < best.loss);
            let split = Split::Validation;
            let evaluation = Evaluation { step, split, loss, perplexity: loss.exp(), best: is_best };
            tell(TrainEvent::Evaluation(evaluation.clone()))?;
            if is_best {
                best = Some(evaluation);
            }
            if step > 0 && step % (4 * plan.evaluate_every) == 0 {
                samples(step, Speaker::Trained, &mut tell)?;
                tell(TrainEvent::Checkpoint(Checkpoint {
                    step,
                    path: format!("run/checkpoints/{step:07}"),
                }))?;
            }
        }
        if step == plan.resumed_at {
            tell(TrainEvent::Started(started(step, total_steps)))?;
        }
    }
    if plan.missing == 0 {
        let test =
            Evaluation { step: plan.steps, split: Split::Test, loss: 1.71, perplexity: 5.53, best: false };
        tell(TrainEvent::Evaluation(test))?;
    }
    let stopped = if finite { Stopped::Complete } else { Stopped::NotFinite };
    if plan.missing == 0 || !finite {
        tell(TrainEvent::Finished(Finished { steps: plan.steps, best, seconds: 1034.5, stopped }))?;
    }
    Ok(())
}

fn started(step: u64, total_steps: u64) -> Started {
    Started {
        step,
        total_steps,
        unix_seconds: 1.795e9,
        model: "Qwen/Qwen2.5-0.5B-Instruct".to_owned(),
        method: "LoRA, rank 8".to_owned(),
        device: "cpu".to_owned(),
        dtype: "bf16".to_owned(),
        parameters: 494_032_768,
        trainable: 540_672,
        data: json!({
            "path": "data/letters",
            "train": { "examples": 4812, "tokens": 1_193_204, "targets": 401_332, "truncated": 3, "longest": 702 },
            "valid": { "examples": 240, "tokens": 59_113, "targets": 20_015 },
            "skipped_lines": [17, 2044],
        }),
        config: json!({
            "adapter": { "rank": 8, "alpha": 16.0, "targets": ["q_proj", "v_proj"], "dropout": 0.05 },
            "optimizer": { "name": "adamw", "learning_rate": 2e-4, "betas": [0.9, 0.999], "weight_decay": 0.01 },
            "schedule": { "name": "cosine", "warm_up": 30 },
            "batch_size": 4, "max_seq_length": 512, "recompute": null, "shuffle": true, "seed": 0,
        }),
    }
}

fn samples<E>(
    step: u64,
    speaker: Speaker,
    tell: &mut impl FnMut(TrainEvent) -> Result<(), E>,
) -> Result<(), E> {
    let asked =
        ["Write to the baker about the bread.", "What is <b>rain</b> & how would you say it in a letter?"];
    let base = [
        "The bread is a type of bread that is made from bread flour. It is a popular food in many countries around the \
         world. The bread is made from flour, water, yeast and salt.",
        "Rain is a form of precipitation that occurs when water vapor in the atmosphere condenses.\n\n1. Rain is water\n\
         2. Rain falls\n3. Rain is <script>alert('wet')</script>",
    ];
    let trained = [
        "Dear Mr Hale,\n\nThe loaf of Thursday was the best that this house has had since the spring, and my mother \
         asks me to say so. Might we have two of them on Saturday?\n\nYours, with flour on the collar,\nE. M.",
        "My dear Anne,\n\nIt has come down since breakfast, thin and steady, as if someone had forgotten to turn it off.",
    ];
    let texts = if speaker == Speaker::Base { base } else { trained };
    for (prompt, text) in asked.into_iter().zip(texts) {
        tell(TrainEvent::Sample(Sample { step, speaker, prompt: prompt.to_owned(), text: text.to_owned() }))?;
    }
    Ok(())
}

fn next() -> Vec<NextCommand> {
    let commands = [
        (
            "Ask the model with its adapter",
            "metal-candle generate -m Qwen/Qwen2.5-0.5B-Instruct --adapter run --prompt 'Write to the baker about the bread.'",
        ),
        ("Talk to it", "metal-candle chat -m Qwen/Qwen2.5-0.5B-Instruct --adapter run"),
        (
            "Make one model of the two",
            "metal-candle adapter merge -m Qwen/Qwen2.5-0.5B-Instruct --adapter run --to merged",
        ),
    ];
    let command = |(purpose, command): (&str, &str)| NextCommand {
        purpose: purpose.to_owned(),
        command: command.to_owned(),
    };
    commands.map(command).to_vec()
}
