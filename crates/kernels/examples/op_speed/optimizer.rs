//! Optimizer steps.

use candle_core::Result;
use metal_candle_kernels::optimizer::{Rule, Step, norm, update};

use crate::{random, report};

pub(crate) fn adamw() -> Result<()> {
    for count in [262_144, 540_672, 10_000_000] {
        let (state, gradient) = ((random((3, count))?.abs()?), random((1, count))?.flatten_all()?);
        let rule = Rule::AdamW { betas: [0.9, 0.999], epsilon: 1e-8 };
        let step = Step { rule, number: 10, learning_rate: 1e-4, weight_decay: 0.01, clip: None };
        report("adamw", &count.to_string(), "step", || update(&state, &gradient, 0..count, &step))?;
        report("adamw", &count.to_string(), "norm", || norm(&gradient))?;
    }
    Ok(())
}
