//! The GPU implementation: for each chunk of tokens a product makes logits, one kernel takes their losses and puts
//! their gradients in their place, and a second product takes those to the hidden states.

use candle_core::{DType, Result, Tensor, bail};

use super::{Counted, HeadWeight, Loss, LossGradients, LossParams, Place};
use crate::{
    fresh::Fresh,
    gpu::{Argument, Float, Kernel, Launch, Module, Variant, launch, module},
    linear::Projection,
    matmul::matmul,
    trace,
};

static MODULE: Module = module!("cross_entropy");
static LOSS: Kernel = Kernel::new(&MODULE, "cross_entropy");
static GRADIENT: Kernel = Kernel::new(&MODULE, "cross_entropy_gradient");

/// Bytes of logits that are held at once.
const LOGITS_BYTES: usize = 300 << 20;
/// Tokens of a chunk are a multiple of this, which suits the products.
const TOKENS_STEP: usize = 128;
/// Accesses of 16 bytes that a thread keeps (`HELD` in the kernels).
const HELD: usize = 7;
/// Most threads of a group.
const MOST_THREADS: usize = 1024;

/// What all chunks of a call have in common.
struct Job<'a> {
    /// `[V, D]` in the dtype of the hidden states.
    weight: Tensor,
    /// `[V]`, in that dtype too.
    bias: Option<Tensor>,
    params: &'a LossParams,
    has_gradient: bool,
}

pub(super) fn run(
    hidden: &Tensor,
    head: &Projection,
    counted: &Counted,
    params: &LossParams,
    wanted: Option<HeadWeight>,
    place: Place,
) -> Result<(Loss, Option<LossGradients>)> {
    let (tokens, device) = (hidden.dim(0)?, hidden.device());
    let count = counted.rows.len();
    let dense = if count == tokens {
        hidden.clone()
    } else {
        trace::launched(1);
        hidden.index_select(&Tensor::new(counted.rows.as_slice(), device)?, 0)?
    }; // [C, D]
    let targets = Tensor::new(counted.targets.as_slice(), device)?; // [C]
    let job = Job {
        weight: head.weight.to_dtype(hidden.dtype())?,
        bias: head.bias.as_ref().map(|bias| bias.to_dtype(hidden.dtype())).transpose()?,
        params,
        has_gradient: wanted.is_some(),
    };
    let chunk = chunk_tokens(count, &job.weight, params)?;
    let (mut losses, mut d_weight) = (Vec::new(), None);
    // Filled piece by piece: pieces joined in the end would be there twice. A piece's hidden states are used up when its
    // gradient is known.
    let d_dense = match place {
        _ if wanted.is_none() => None,
        Place::Own if count == tokens => Some(dense.zeros_like()?),
        Place::Own | Place::OfHidden => Some(dense.clone()),
    }; // [C, D]
    for start in (0..count).step_by(chunk) {
        let length = chunk.min(count - start);
        let rows = dense.narrow(0, start, length)?;
        let logits = product(&rows, &job.weight.t()?)?; // [length, V]
        losses.push(take_losses(&job, &logits, &targets.narrow(0, start, length)?)?);
        // From here on, `logits` are gradients.
        if wanted == Some(HeadWeight::Trainable) {
            let part = product(&logits.t()?, &rows)?.to_dtype(DType::F32)?; // [V, D]
            trace::launched(u64::from(logits.dtype() != DType::F32));
            d_weight = Some(match d_weight {
                Some(sum) => {
                    trace::launched(1);
                    (sum + part)?
                }
                None => part,
            });
        }
        if let Some(d_dense) = &d_dense {
            d_dense.slice_set(&product(&logits, &job.weight)?, 0, start)?;
        }
    }
    let loss = Loss { losses: spread(losses, &counted.rows, tokens)?, count };
    let gradients = match d_dense {
        Some(d_dense) => {
            let hidden = spread(vec![d_dense], &counted.rows, tokens)?;
            Some(LossGradients { hidden, weight: d_weight })
        }
        None => None,
    };
    Ok((loss, gradients))
}

/// A matrix product with sums in f32, as GPUs make it.
fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    // Candle's product on the CPU, which stands in under the emulator, sums half precision in half precision.
    #[cfg(test)]
    if a.device().is_cpu() {
        return a.to_dtype(DType::F32)?.matmul(&b.to_dtype(DType::F32)?)?.to_dtype(a.dtype());
    }
    Ok(matmul(a, b)?.into_tensor())
}

/// Tokens per chunk: all chunks of nearly the same size, within what the logits may take.
fn chunk_tokens(count: usize, weight: &Tensor, params: &LossParams) -> Result<usize> {
    let row_bytes = weight.dim(0)? * weight.dtype().size_in_bytes();
    if let Some(tokens) = params.chunk_tokens {
        return Ok(tokens);
    }
    let most = (LOGITS_BYTES / row_bytes / TOKENS_STEP * TOKENS_STEP).max(TOKENS_STEP);
    let chunks = count.div_ceil(most);
    Ok(count.div_ceil(chunks).next_multiple_of(TOKENS_STEP))
}

/// The losses of a chunk, `[length]`. With a gradient, the logits are replaced by theirs.
fn take_losses(job: &Job<'_>, logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let (length, vocabulary) = logits.dims2()?;
    let float = Float::of(logits)?;
    if logits.layout().start_offset() != 0 {
        bail!("cross_entropy: logits that do not begin at the start of their memory");
    }
    // SAFETY: the kernel writes the loss of every row.
    let losses = unsafe { Fresh::uninitialized(length, DType::F32, logits.device())? };
    let params = job.params;
    let threads = (vocabulary / float.lanes()).div_ceil(HELD).next_multiple_of(32).clamp(32, MOST_THREADS);
    let (kernel, access) = if job.has_gradient {
        (&GRADIENT, Argument::Update(logits))
    } else {
        (&LOSS, Argument::Read(logits))
    };
    let launch_of_rows = Launch {
        kernel,
        // Rows of any width: the kernels find the first whole access of each.
        variant: Variant::Vector(float),
        groups: [length, 1, 1],
        threads,
        arguments: &[
            access,
            Argument::Read(targets),
            Argument::Read(job.bias.as_ref().unwrap_or(logits)),
            Argument::Write(&losses),
            Argument::U32(u32::try_from(vocabulary)?),
            Argument::U32(job.bias.is_some().into()),
            Argument::F32(params.logit_scale),
            Argument::F32(params.soft_cap.unwrap_or(0.)),
            Argument::F32(params.label_smoothing),
            Argument::F32(params.z_loss),
        ],
    };
    // SAFETY: as the kernels ask; every target lies within the vocabulary, which the caller checked.
    unsafe { launch(logits.device(), &launch_of_rows)? };
    Ok(losses.into_tensor())
}

/// Rows of the counted tokens at their places among all, zeros between them.
fn spread(mut parts: Vec<Tensor>, rows: &[u32], tokens: usize) -> Result<Tensor> {
    trace::launched(if parts.len() == 1 { 0 } else { parts.len() as u64 });
    if rows.len() == tokens {
        return if parts.len() == 1 { Ok(parts.swap_remove(0)) } else { Tensor::cat(&parts, 0) };
    }
    let zero = parts[0].narrow(0, 0, 1)?.zeros_like()?;
    parts.push(zero);
    trace::launched(3); // two more copies, and the selection
    let mut places = vec![rows.len() as u32; tokens];
    rows.iter().enumerate().for_each(|(index, row)| places[*row as usize] = index as u32);
    Tensor::cat(&parts, 0)?.index_select(&Tensor::new(places, parts[0].device())?, 0)
}
