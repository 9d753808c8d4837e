//! Which rule moves which parameters how far.

use metal_candle_kernels::optimizer::Rule;
use serde::{Deserialize, Serialize};

use super::{Group, TrainError};

/// Settings of an optimizer, as a user gives them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// The rule.
    pub name: Optimizer,
    /// Decay of the averages of the gradient and of its square (Lion: of the direction and of the average). SGD's momentum
    /// is the first.
    pub betas: Option<[f32; 2]>,
    /// Added to the root of the second average.
    pub epsilon: f32,
    /// Pulls values to zero; biases and norms are left alone.
    pub weight_decay: f32,
    /// The learning rate of B over that of A (LoRA+).
    pub b_rate: f32,
    /// The longest gradient, all parameters together; longer ones are shortened.
    pub max_gradient_norm: Option<f32>,
}

/// A rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // the papers' names
pub enum Optimizer {
    AdamW,
    Adam,
    Sgd,
    Lion,
}

/// One step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    /// Counted from 1.
    pub number: u32,
    /// By the schedule.
    pub learning_rate: f32,
    /// Divides the summed gradient: the targets of all batches of the step.
    pub targets: usize,
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Updated {
    /// The length of the gradient before it was shortened. If it is not finite, nothing was changed.
    pub gradient_norm: f32,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            name: Optimizer::AdamW,
            betas: None,
            epsilon: 1e-8,
            weight_decay: 0.01,
            b_rate: 1.0,
            max_gradient_norm: None,
        }
    }
}

impl OptimizerConfig {
    /// The rule in the kernels' terms.
    pub(crate) fn rule(&self) -> Rule {
        let [first, second] = self.betas.unwrap_or(match self.name {
            Optimizer::AdamW | Optimizer::Adam => [0.9, 0.999],
            Optimizer::Sgd => [0.0, 0.0],
            Optimizer::Lion => [0.9, 0.99],
        });
        let (betas, epsilon) = ([first, second], self.epsilon);
        match self.name {
            Optimizer::AdamW => Rule::AdamW { betas, epsilon },
            Optimizer::Adam => Rule::Adam { betas, epsilon },
            Optimizer::Sgd => Rule::Sgd { momentum: first },
            Optimizer::Lion => Rule::Lion { betas },
        }
    }

    /// Whether every number is in its range.
    pub fn check(&self) -> Result<(), TrainError> {
        let bad = |name, value: f32, expected| {
            Err(TrainError::Setting { name, value: value.to_string(), expected })
        };
        if let Some(beta) = self.betas.into_iter().flatten().find(|beta| !(0.0..1.0).contains(beta)) {
            return bad("betas", beta, "each must be at least 0 and below 1");
        }
        if !(self.epsilon > 0.0 && self.epsilon.is_finite()) {
            return bad("epsilon", self.epsilon, "it must be above 0");
        }
        if !(self.weight_decay >= 0.0 && self.weight_decay.is_finite()) {
            return bad("weight_decay", self.weight_decay, "it must be at least 0");
        }
        if !(self.b_rate > 0.0 && self.b_rate.is_finite()) {
            return bad("b_rate", self.b_rate, "it must be above 0");
        }
        match self.max_gradient_norm {
            Some(norm) if norm.is_nan() || norm <= 0.0 => {
                bad("max_gradient_norm", norm, "it must be above 0")
            }
            _ => Ok(()),
        }
    }

    /// The learning rate and the weight decay of a group.
    pub(crate) fn of(&self, group: Group, learning_rate: f32) -> (f32, f32) {
        match group {
            Group::Decayed => (learning_rate, self.weight_decay),
            Group::LoraB => (learning_rate * self.b_rate, self.weight_decay),
            Group::Plain => (learning_rate, 0.0),
        }
    }
}
