//! Optimizer steps over all parameters at once, and the norm of a gradient.
//!
//! The trainable parameters of a run live one after another in a single tensor `[3, N]`: their values, and the
//! two moments that the rules keep. A parameter is a view of the first row. So one launch updates everything,
//! and one reduction gives the norm of the whole gradient.

mod cpu;
mod gpu;
#[cfg(test)]
mod reference;

use std::ops::Range;

use candle_core::{DType, Result, Tensor, bail};

use crate::{
    device::runs_kernels,
    trace::{self, Work},
};

/// How a parameter follows its gradient.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// Adam with decoupled weight decay (Loshchilov and Hutter, <https://arxiv.org/abs/1711.05101>).
    AdamW {
        /// Decay of the two moments.
        betas: [f32; 2],
        /// Added to the root of the second moment.
        epsilon: f32,
    },
    /// Adam; its weight decay is part of the gradient.
    Adam {
        /// Decay of the two moments.
        betas: [f32; 2],
        /// Added to the root of the second moment.
        epsilon: f32,
    },
    /// Gradient descent with momentum; its weight decay is part of the gradient.
    Sgd {
        /// Decay of the accumulated gradient; 0 for plain descent.
        momentum: f32,
    },
    /// The sign of a moving average (<https://arxiv.org/abs/2302.06675>), with decoupled weight decay.
    Lion {
        /// The share of the average in the update, and its decay.
        betas: [f32; 2],
    },
}

/// One step.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// The rule.
    pub rule: Rule,
    /// Counted from 1.
    pub number: u32,
    /// The learning rate of this step.
    pub learning_rate: f32,
    /// The decay of the values, per unit of learning rate where the rule decouples it.
    pub weight_decay: f32,
    /// Limits the norm of the gradient.
    pub clip: Option<Clip<'a>>,
}

/// A limit on the norm of the gradient: a longer one is shortened to it.
#[derive(Debug, Clone, Copy)]
pub struct Clip<'a> {
    /// The norm of the whole gradient, `[1]` in f32: see [`norm`].
    pub norm: &'a Tensor,
    /// The longest that is allowed.
    pub longest: f32,
}

/// Moves the parameters `range` of `state` (`[3, N]`, f32, contiguous, changed in place) along their part of
/// `gradient` (`[N]`, f32). Parameters with rates of their own are ranges of their own.
pub fn update(state: &Tensor, gradient: &Tensor, range: Range<usize>, step: &Step<'_>) -> Result<()> {
    let _op = trace::op("optimizer_update", state.device(), || step.work(range.len()));
    check(state, gradient, &range, step)?;
    if range.is_empty() {
        return Ok(());
    }
    let coefficients = Coefficients::of(step);
    if runs_kernels(state.device()) {
        gpu::update(state, gradient, range, &coefficients, step.clip)
    } else {
        cpu::update(state, gradient, range, &coefficients, step.clip)
    }
}

/// `√Σx²` over all elements, `[1]` in f32, on the tensor's device. Summed in a fixed order.
pub fn norm(x: &Tensor) -> Result<Tensor> {
    let _op = trace::op("gradient_norm", x.device(), || Work::elementwise(x, 1, 2));
    if x.dtype() != DType::F32 {
        bail!("norm: `x` has dtype {:?}, expected F32", x.dtype());
    }
    let x = x.contiguous()?;
    if runs_kernels(x.device()) { gpu::norm(&x) } else { cpu::norm(&x) }
}

impl Step<'_> {
    /// The values and both moments of so many parameters are read and written, and their gradients read.
    fn work(&self, count: usize) -> Work {
        Work { bytes: 28 * count as u64, flops: 14 * count as u64 }
    }
}

/// A step, with all that depends on its number worked out.
#[derive(Debug, Clone, Copy)]
struct Coefficients {
    /// The rule's index in the kernels.
    rule: u32,
    betas: [f32; 2],
    epsilon: f32,
    /// Multiplies the direction.
    rate: f32,
    /// Multiplies the value first: decoupled weight decay.
    keep: f32,
    /// Times the value, added to the gradient: coupled weight decay.
    coupled_decay: f32,
    /// Multiplies the root of the second moment.
    root_factor: f32,
}

impl Coefficients {
    fn of(step: &Step<'_>) -> Self {
        let (rate, decay) = (step.learning_rate, step.weight_decay);
        let power = |beta: f32| 1. - f64::from(beta).powf(f64::from(step.number));
        let adam = |rule, betas: [f32; 2], epsilon, keep, coupled_decay| {
            let [first, second] = betas.map(power);
            Self {
                rule,
                betas,
                epsilon,
                rate: (f64::from(rate) / first) as f32,
                keep,
                coupled_decay,
                root_factor: second.sqrt().recip() as f32,
            }
        };
        let plain = |rule, betas, keep, coupled_decay| Self {
            rule,
            betas,
            epsilon: 0.,
            rate,
            keep,
            coupled_decay,
            root_factor: 0.,
        };
        match step.rule {
            Rule::AdamW { betas, epsilon } => adam(0, betas, epsilon, 1. - rate * decay, 0.),
            Rule::Adam { betas, epsilon } => adam(0, betas, epsilon, 1., decay),
            Rule::Sgd { momentum } => plain(1, [momentum, 0.], 1., decay),
            Rule::Lion { betas } => plain(2, betas, 1. - rate * decay, 0.),
        }
    }
}

fn check(state: &Tensor, gradient: &Tensor, range: &Range<usize>, step: &Step<'_>) -> Result<()> {
    let &[3, count] = state.dims() else {
        bail!("update: `state` is {:?}, expected [3, N]", state.dims());
    };
    if gradient.dims() != [count] {
        bail!("update: `gradient` is {:?}, expected [{count}] for `state` [3, {count}]", gradient.dims());
    }
    for (name, tensor) in [("state", state), ("gradient", gradient)] {
        if tensor.dtype() != DType::F32 || !tensor.is_contiguous() {
            bail!(
                "update: `{name}` must be contiguous f32; it is {:?}, {:?}",
                tensor.dtype(),
                tensor.layout()
            );
        }
    }
    if state.track_op() && !state.is_variable() {
        bail!("update: `state` is the result of a recorded op; a change in place would falsify its gradient");
    }
    if range.start > range.end || range.end > count {
        bail!("update: the range {range:?} is not within the {count} parameters");
    }
    if step.number == 0 {
        bail!("update: steps are counted from 1");
    }
    if let Some(clip) = step.clip
        && (clip.norm.dims(), clip.norm.dtype()) != (&[1], DType::F32)
    {
        bail!("update: `norm` is {:?} {:?}, expected [1] F32", clip.norm.dims(), clip.norm.dtype());
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod suite;
