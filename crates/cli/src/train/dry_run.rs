//! `train --dry-run`: what a run would do.

use std::time::Duration;

use anyhow::Result;
use metal_candle::{
    LanguageModel,
    train::{Plan, TrainConfig},
};
use serde_json::json;

use crate::console::{Console, human_bytes};

pub(super) fn run(
    language_model: &LanguageModel,
    config: &TrainConfig,
    as_json: bool,
    console: &Console,
) -> Result<()> {
    let bar = console.count_bar("reading data", 0);
    let plan = Plan::new(language_model, config, &mut |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let plan = plan?;
    if as_json {
        return console
            .print_json(&json!({ "config": config, "plan": plan, "memory_bytes": plan.memory.total() }));
    }
    console.print(&format!("{}\n\n{}", serde_json::to_string_pretty(config)?, table(&plan)))
}

fn table(plan: &Plan) -> String {
    let (parameters, trained) = plan.parameters;
    let (cut, lost) = plan.cut;
    let memory = &plan.memory;
    let share = 100.0 * trained as f64 / parameters as f64;
    let rows = [
        ("steps", format!("{} ({:.2} epochs of {} batches)", plan.steps, plan.epochs, plan.batches)),
        ("examples", format!("{} ({} left out, {} bad lines)", plan.examples, plan.left_out, plan.bad_lines)),
        ("tokens", format!("{}, supervised {}", plan.tokens, plan.targets)),
        ("cut", format!("{cut} examples, {lost} tokens")),
        ("largest batch", format!("{} rows, {:.0} % of all rows useful", plan.rows, 100.0 * plan.fill)),
        ("parameters", format!("{parameters}, trained {trained} ({share:.3} %)")),
        ("recomputed", plan.recompute.to_string()),
        (
            "peak memory",
            format!(
                "{} (weights {}, trained {}, activations {}, work {}, process {})",
                human_bytes(memory.total()),
                human_bytes(memory.weights),
                human_bytes(memory.trained),
                human_bytes(memory.activations),
                human_bytes(memory.working),
                human_bytes(memory.process)
            ),
        ),
        ("time", format!("{} for the steps, from the speed of one batch", duration(plan.seconds))),
    ];
    rows.iter().map(|(name, value)| format!("{name:<14}{value}\n")).collect()
}

fn duration(seconds: f64) -> String {
    let seconds = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}
