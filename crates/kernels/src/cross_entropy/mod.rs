//! Cross-entropy of a language model's head, fused with the head: logits are made and used up piece by piece,
//! and never held for all tokens. Label smoothing is that of [PyTorch], the z-loss that of [PaLM].
//!
//! T: tokens, C: counted tokens, D: hidden size, V: vocabulary.
//!
//! [PyTorch]: https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
//! [PaLM]: https://arxiv.org/abs/2204.02311

mod cpu;
mod gpu;
#[cfg(test)]
mod reference;

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::{
    device::{self, runs_kernels},
    fresh::Fresh,
    graph::record2,
    linear::Projection,
    trace::{self, Work},
};

/// The target of a token that does not count. It costs nothing.
pub const IGNORED: u32 = u32::MAX;

/// From logits to a loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossParams {
    /// The share of the target distribution that is spread evenly over the vocabulary, `0..=1`.
    pub label_smoothing: f32,
    /// The weight of the squared logarithm of the softmax's denominator, added to the loss.
    pub z_loss: f32,
    /// Logits become `cap · tanh(logit / cap)`, after the scale (gemma 2).
    pub soft_cap: Option<f32>,
    /// Multiplies the logits (granite: one over its `logits_scaling`).
    pub logit_scale: f32,
    /// The most tokens whose logits a GPU holds at once; `None` chooses by memory. The CPU holds a small tile only.
    pub chunk_tokens: Option<usize>,
}

impl Default for LossParams {
    fn default() -> Self {
        Self { label_smoothing: 0., z_loss: 0., soft_cap: None, logit_scale: 1., chunk_tokens: None }
    }
}

/// What the tokens' targets cost.
#[derive(Debug, Clone)]
pub struct Loss {
    /// `[T]`, f32, on the device of the hidden states; 0 where the target is [`IGNORED`]. A logit that is not a number, or
    /// infinite, makes its token's loss NaN.
    pub losses: Tensor,
    /// How many targets count.
    pub count: usize,
}

impl Loss {
    /// The sum over the counted targets. Waits for the device.
    pub fn sum(&self) -> Result<f64> {
        Ok(self.losses.to_vec1::<f32>()?.into_iter().map(f64::from).sum())
    }
}

/// Whether the head's weight is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadWeight {
    /// It gets no gradient.
    Frozen,
    /// It gets one.
    Trainable,
}

/// Where the gradients of the hidden states are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// To memory of their own.
    Own,
    /// Over the hidden states, where the device can.
    OfHidden,
}

/// Gradients of the *sum* of the losses: divide by the targets of the whole step.
#[derive(Debug, Clone)]
pub struct LossGradients {
    /// `[T, D]` in the dtype of the hidden states; 0 where the target is [`IGNORED`].
    pub hidden: Tensor,
    /// `[V, D]` in f32, for [`HeadWeight::Trainable`].
    pub weight: Option<Tensor>,
}

/// The loss of each token, from the last hidden states `[T, D]` and the id that each of them is to predict.
pub fn lm_head_loss(
    hidden: &Tensor,
    head: &Projection,
    targets: &[u32],
    params: &LossParams,
) -> Result<Loss> {
    let _op = trace::op("lm_head_loss", hidden.device(), || head_work(hidden, head, targets, 1));
    let (loss, _) = run(hidden, head, targets, params, None, Place::Own)?;
    Ok(loss)
}

/// [`lm_head_loss`] with the gradients of the sum, in the same pass.
pub fn lm_head_loss_and_gradients(
    hidden: &Tensor,
    head: &Projection,
    targets: &[u32],
    params: &LossParams,
    weight: HeadWeight,
) -> Result<(Loss, LossGradients)> {
    loss_and_gradients(hidden, head, targets, params, weight, Place::Own)
}

/// [`lm_head_loss_and_gradients`], whose gradients take the place of the hidden states where that saves memory, which is
/// on a GPU. Nobody else may hold those.
pub fn lm_head_loss_and_gradients_in_place(
    hidden: Tensor,
    head: &Projection,
    targets: &[u32],
    params: &LossParams,
    weight: HeadWeight,
) -> Result<(Loss, LossGradients)> {
    loss_and_gradients(&hidden, head, targets, params, weight, Place::OfHidden)
}

fn loss_and_gradients(
    hidden: &Tensor,
    head: &Projection,
    targets: &[u32],
    params: &LossParams,
    weight: HeadWeight,
    place: Place,
) -> Result<(Loss, LossGradients)> {
    let _op = trace::op("lm_head_loss_and_gradients", hidden.device(), || {
        head_work(hidden, head, targets, if weight == HeadWeight::Trainable { 3 } else { 2 })
    });
    let (loss, gradients) = run(hidden, head, targets, params, Some(weight), place)?;
    Ok((loss, gradients.expect("asked for")))
}

/// The mean loss of the counted targets, a scalar in f32 that candle's graph knows the gradients of. They are
/// computed together with the loss, and only if something asks for them.
pub fn cross_entropy(
    hidden: &Tensor,
    head: &Projection,
    targets: &[u32],
    params: &LossParams,
) -> Result<Tensor> {
    let _op = trace::op("cross_entropy", hidden.device(), || head_work(hidden, head, targets, 2));
    if head.bias.as_ref().is_some_and(Tensor::track_op) {
        bail!("cross_entropy: the head's bias asks for a gradient, which does not exist; detach it");
    }
    let weight = if head.weight.track_op() { HeadWeight::Trainable } else { HeadWeight::Frozen };
    let wanted = (hidden.track_op() || head.weight.track_op()).then_some(weight);
    let (loss, gradients) = run(hidden, head, targets, params, wanted, Place::Own)?;
    if loss.count == 0 {
        bail!("cross_entropy: every target is ignored, and the mean of nothing is undefined");
    }
    let count = loss.count as f64;
    let mean = (loss.losses.sum_all()? / count)?;
    let Some(gradients) = gradients else { return Ok(mean) };
    record2("cross_entropy", Fresh::copy_of(&mean)?, [hidden, &head.weight], move |[_, weight], _, d_mean| {
        let factor = (d_mean / count)?;
        let scaled = |sum: &Tensor| sum.broadcast_mul(&factor.to_dtype(sum.dtype())?);
        let d_weight =
            gradients.weight.as_ref().map(|sum| scaled(sum)?.to_dtype(weight.dtype())).transpose()?;
        Ok([Some(scaled(&gradients.hidden)?), d_weight])
    })
}

/// One product with the head for the logits, and one for each gradient that is wanted, over the tokens that count.
fn head_work(hidden: &Tensor, head: &Projection, targets: &[u32], products: usize) -> Work {
    let counted = targets.iter().filter(|target| **target != IGNORED).count();
    let product = 2 * (counted * head.weight.elem_count()) as u64;
    let sums = if products == 3 { 4 * head.weight.elem_count() as u64 } else { 0 };
    let work = Work::moving(&[hidden, &head.weight]).and(sums, products as u64 * product);
    if products > 1 { work.and_moving(&[hidden]) } else { work }
}

/// Tokens that count.
struct Counted {
    /// Their positions, ascending.
    rows: Vec<u32>,
    /// Their targets.
    targets: Vec<u32>,
}

impl Counted {
    fn new(targets: &[u32]) -> Self {
        let counted = targets.iter().enumerate().filter(|(_, target)| **target != IGNORED);
        let (rows, targets) = counted.map(|(row, target)| (row as u32, *target)).unzip();
        Self { rows, targets }
    }
}

fn run(
    hidden: &Tensor,
    head: &Projection,
    targets: &[u32],
    params: &LossParams,
    wanted: Option<HeadWeight>,
    place: Place,
) -> Result<(Loss, Option<LossGradients>)> {
    check(hidden, head, targets, params)?;
    // The result enters a graph by `cross_entropy` only.
    let (hidden, detached) = (
        hidden.detach().contiguous()?,
        Projection {
            weight: head.weight.detach().contiguous()?,
            bias: head.bias.as_ref().map(|bias| bias.detach().contiguous()).transpose()?,
        },
    );
    let counted = Counted::new(targets);
    if counted.rows.is_empty() {
        return nothing(&hidden, &detached, wanted);
    }
    if runs_kernels(hidden.device()) {
        return gpu::run(&hidden, &detached, &counted, params, wanted, place);
    }
    if !device::narrow_on_cpu(&hidden) {
        return cpu::run(&hidden, &detached, &counted, params, wanted);
    }
    let (loss, gradients) = cpu::run(&hidden.to_dtype(DType::F32)?, &detached, &counted, params, wanted)?;
    let narrow = |gradients: LossGradients| -> Result<LossGradients> {
        Ok(LossGradients { hidden: gradients.hidden.to_dtype(hidden.dtype())?, ..gradients })
    };
    Ok((loss, gradients.map(narrow).transpose()?))
}

/// The result where no target counts.
fn nothing(
    hidden: &Tensor,
    head: &Projection,
    wanted: Option<HeadWeight>,
) -> Result<(Loss, Option<LossGradients>)> {
    let device: &Device = hidden.device();
    let losses = Tensor::zeros(hidden.dim(0)?, DType::F32, device)?;
    let weight = match wanted {
        Some(HeadWeight::Trainable) => Some(Tensor::zeros(head.weight.shape(), DType::F32, device)?),
        _ => None,
    };
    let gradients = match wanted {
        Some(_) => Some(LossGradients { hidden: hidden.zeros_like()?, weight }),
        None => None,
    };
    Ok((Loss { losses, count: 0 }, gradients))
}

fn check(hidden: &Tensor, head: &Projection, targets: &[u32], params: &LossParams) -> Result<()> {
    let &[tokens, width] = hidden.dims() else {
        bail!("cross_entropy: `hidden` is {:?}, expected [T, D]", hidden.dims());
    };
    let &[vocabulary, _] = head.weight.dims() else {
        bail!("cross_entropy: the head's weight is {:?}, expected [V, {width}]", head.weight.dims());
    };
    if head.weight.dims() != [vocabulary, width] || vocabulary == 0 {
        let found = head.weight.dims();
        bail!(
            "cross_entropy: the head's weight is {found:?}, expected [V, {width}] for `hidden` [{tokens}, {width}]"
        );
    }
    if let Some(bias) = head.bias.as_ref().filter(|bias| bias.dims() != [vocabulary]) {
        bail!("cross_entropy: the head's bias is {:?}, expected [{vocabulary}]", bias.dims());
    }
    if targets.len() != tokens {
        bail!("cross_entropy: {} targets for {tokens} rows of `hidden`", targets.len());
    }
    let outside = |target: &u32| *target != IGNORED && *target as usize >= vocabulary;
    if let Some(index) = targets.iter().position(outside) {
        let target = targets[index];
        bail!("cross_entropy: target {target} at index {index} is outside the vocabulary of {vocabulary}");
    }
    let LossParams { label_smoothing, z_loss, soft_cap, logit_scale, chunk_tokens } = *params;
    if !(0. ..=1.).contains(&label_smoothing) {
        bail!("cross_entropy: `label_smoothing` is {label_smoothing}; use 0 to 1");
    }
    if !(z_loss >= 0. && z_loss.is_finite()) {
        bail!("cross_entropy: `z_loss` is {z_loss}; use 0 or more");
    }
    if let Some(cap) = soft_cap.filter(|cap| !(*cap > 0. && cap.is_finite())) {
        bail!("cross_entropy: `soft_cap` is {cap}; use a number above 0, or None");
    }
    if !(logit_scale > 0. && logit_scale.is_finite()) {
        bail!("cross_entropy: `logit_scale` is {logit_scale}; use a number above 0");
    }
    if chunk_tokens == Some(0) {
        bail!("cross_entropy: `chunk_tokens` is 0; use 1 or more, or None");
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod suite;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
