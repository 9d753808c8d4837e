//! Training's way through a decoder: forward with what the way back needs, then back, block by block.
//!
//! No gradient of a frozen weight is computed or stored; blocks before the first adapter are not walked back; a
//! block whose activations were not kept is run again from its input.
//!
//! T: rows of all sequences of a batch, one after another.

mod attention;
mod mlp;
mod part;
mod positions;
mod recompute;

use candle_core::Tensor;
use metal_candle_kernels::{
    accumulate::accumulate,
    attention::{AttentionParams, PackedAttention},
    cross_entropy::{HeadWeight, LossParams, lm_head_loss, lm_head_loss_and_gradients_in_place},
    embedding::{embedding, embedding_backward},
    rms_norm::{ResidualGradient, RmsNorm, rms_norm, rms_norm_backward, rms_norm_weight_backward},
    rope::Rotation,
    trace,
};

use self::{attention::SavedAttention, mlp::SavedMlp};
use super::{Model, ModelError, decoder::Block};
use crate::lora::{ActiveAdapter, BlockAdapter, Part};

pub use self::recompute::Recompute;
pub(crate) use self::{
    part::{Dropout, LoraSums, PartGradients, PartSums},
    positions::RotaryTables,
    recompute::Again,
};

/// Sequences laid one after another, as a batch of training has them.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// The tokens of all sequences.
    pub tokens: &'a [u32],
    /// What each row is to predict, or [`IGNORED`](metal_candle_kernels::cross_entropy::IGNORED).
    pub targets: &'a [u32],
    /// The first row of each sequence, then the number of rows.
    pub starts: &'a [u32],
}

/// What a batch cost.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct BatchLoss {
    /// −log p, summed over the targets.
    pub sum: f64,
    /// How many there are.
    pub targets: usize,
}

/// Where gradients are added, for everything that is trained.
#[derive(Debug, Default)]
pub(crate) struct Gradients {
    /// `[vocab, hidden]`; with a tied head also the head's.
    pub(crate) embedding: Option<Tensor>,
    pub(crate) blocks: Vec<BlockGradients>,
    pub(crate) final_norm: Option<Tensor>,
    /// `[vocab, hidden]` of a head of its own.
    pub(crate) head: Option<Tensor>,
}

/// The part of one block.
#[derive(Debug, Default)]
pub(crate) struct BlockGradients {
    pub(crate) parts: PartGradients,
    pub(crate) before_attention: Option<Tensor>,
    pub(crate) after_attention: Option<Tensor>,
    pub(crate) before_mlp: Option<Tensor>,
    pub(crate) after_mlp: Option<Tensor>,
    pub(crate) query_norm: Option<Tensor>,
    pub(crate) key_norm: Option<Tensor>,
}

/// A way through a model with one batch.
pub(crate) struct Walk<'a> {
    pub(crate) model: &'a Model,
    pub(crate) adapter: Option<&'a ActiveAdapter>,
    pub(crate) dropout: Option<Dropout>,
    /// From this block on, gradients are wanted.
    pub(crate) first_block: usize,
    /// What is run again on the way back.
    pub(crate) recompute: Recompute,
    pub(crate) loss: LossParams,
}

/// What is the same for all blocks.
pub(super) struct Shared<'a> {
    rotations: Vec<Rotation>,
    starts: Vec<u32>,
    dropout: Option<Dropout>,
    residual_scale: f32,
    model: &'a Model,
}

/// What a block leaves for its way back.
struct SavedBlock {
    input: Tensor, // [T, hidden]
    /// Without it, the whole block is run again.
    attention: Option<AttentionHalf>,
    /// Without it, the MLP is.
    mlp: Option<MlpHalf>,
}

struct AttentionHalf {
    saved: SavedAttention,
    /// What it adds, where a norm stands after it.
    delta: Option<Tensor>,
    middle: Tensor, // [T, hidden], the stream between the halves
}

struct MlpHalf {
    saved: SavedMlp,
    /// What it adds, where a norm stands after it.
    delta: Option<Tensor>,
}

impl Walk<'_> {
    /// The loss of a batch, without gradients.
    pub(crate) fn loss(&self, rows: &Rows<'_>, tables: &mut RotaryTables) -> Result<BatchLoss, ModelError> {
        let shared = self.shared(rows, tables)?;
        let (_, normed) = self.forward(rows, &shared, &mut |_, _| ())?;
        let found = lm_head_loss(&normed, &self.model.head, rows.targets, &self.loss)?;
        Ok(BatchLoss { sum: found.sum()?, targets: found.count })
    }

    /// The loss of a batch; adds the gradients of its sum.
    pub(crate) fn accumulate(
        &self,
        rows: &Rows<'_>,
        tables: &mut RotaryTables,
        gradients: &Gradients,
    ) -> Result<BatchLoss, ModelError> {
        let shared = self.shared(rows, tables)?;
        let count = self.model.blocks.len();
        let mut saved: Vec<SavedBlock> = Vec::with_capacity(count);
        let mut save = |layer: usize, mut block: SavedBlock| {
            let Some(walked) = layer.checked_sub(self.first_block) else { return };
            match self.recompute.of_block(walked) {
                Again::Nothing => {}
                Again::Mlp => block.mlp = None,
                Again::Block => (block.attention, block.mlp) = (None, None),
            }
            saved.push(block);
        };
        let (stream, normed) = self.forward(rows, &shared, &mut save)?;

        let trained_head = if self.model.spec.head.tied { &gradients.embedding } else { &gradients.head };
        let weight = if trained_head.is_some() { HeadWeight::Trainable } else { HeadWeight::Frozen };
        let (loss, from_head) =
            lm_head_loss_and_gradients_in_place(normed, &self.model.head, rows.targets, &self.loss, weight)?;
        if let (Some(sum), Some(found)) = (trained_head, &from_head.weight) {
            accumulate(sum, found)?;
        }
        let mut d_stream = rms_norm_backward(&stream, &self.model.final_norm, &from_head.hidden, None)?;
        add_norm_gradient(&gradients.final_norm, &stream, &self.model.final_norm, &from_head.hidden, 1.0)?;
        drop((stream, from_head));

        for layer in (self.first_block..count).rev() {
            let saved = saved.pop().expect("every block from the first on has left something");
            let wanted = layer > self.first_block || gradients.embedding.is_some();
            match self.block_back(layer, saved, d_stream, wanted, &shared, &gradients.blocks[layer])? {
                Some(d_input) => d_stream = d_input,
                None => return Ok(BatchLoss { sum: loss.sum()?, targets: loss.count }),
            }
        }
        if let Some(sum) = &gradients.embedding {
            let scale = self.model.embedding_scale;
            let found = embedding_backward(rows.tokens, &d_stream, self.model.spec.vocab_size, scale)?;
            accumulate(sum, &found)?;
        }
        Ok(BatchLoss { sum: loss.sum()?, targets: loss.count })
    }

    fn shared(&self, rows: &Rows<'_>, tables: &mut RotaryTables) -> Result<Shared<'_>, ModelError> {
        check(rows, self.model)?;
        Ok(Shared {
            rotations: tables.rotations(self.model, rows.starts)?,
            starts: rows.starts.to_vec(),
            dropout: self.dropout,
            residual_scale: self.model.spec.residual_scale,
            model: self.model,
        })
    }

    /// The stream after the last block, and its norm. `save` is given what each block leaves.
    fn forward(
        &self,
        rows: &Rows<'_>,
        shared: &Shared<'_>,
        save: &mut dyn FnMut(usize, SavedBlock),
    ) -> Result<(Tensor, Tensor), ModelError> {
        let model = self.model;
        let _forward = trace::span("forward", &model.device);
        let mut stream = embedding(&model.embedding, rows.tokens, model.embedding_scale, model.compute)?;
        let mut normed =
            normed(&stream, model.blocks.first().and_then(|block| block.before_attention.as_ref()))?;
        for layer in 0..model.blocks.len() {
            let (next_stream, next_normed, saved) = self.block(layer, &stream, &normed, shared)?;
            save(layer, saved);
            (stream, normed) = (next_stream, next_normed);
        }
        Ok((stream, normed))
    }

    /// One block: the stream after it, the input of what follows, and what the way back needs.
    fn block(
        &self,
        layer: usize,
        stream: &Tensor,
        normed: &Tensor,
        shared: &Shared<'_>,
    ) -> Result<(Tensor, Tensor, SavedBlock), ModelError> {
        let model = self.model;
        let _layer = trace::span("layer", &model.device).at(layer);
        let (block, adapter) = (&model.blocks[layer], self.block_adapter(layer));
        let (attention, normed) = self.attention_half(layer, stream, normed, shared)?;
        let (delta, saved) = mlp::forward(&block.mlp, &normed, layer, adapter, shared)?;
        let mlp = MlpHalf { saved, delta: block.after_mlp.is_some().then(|| delta.clone()) };
        let next = match model.blocks.get(layer + 1) {
            Some(following) => following.before_attention.as_ref(),
            None => Some(&model.final_norm),
        };
        let (out, normed) = model.join(&attention.middle, delta, block.after_mlp.as_ref(), next)?;
        Ok((out, normed, SavedBlock { input: stream.clone(), attention: Some(attention), mlp: Some(mlp) }))
    }

    /// The first half of a block, and the input of the second.
    fn attention_half(
        &self,
        layer: usize,
        stream: &Tensor,
        normed: &Tensor,
        shared: &Shared<'_>,
    ) -> Result<(AttentionHalf, Tensor), ModelError> {
        let (block, adapter) = (&self.model.blocks[layer], self.block_adapter(layer));
        let (delta, saved) = attention::forward(&block.attention, normed, layer, adapter, shared)?;
        let kept = block.after_attention.is_some().then(|| delta.clone());
        let (after, next) = (block.after_attention.as_ref(), block.before_mlp.as_ref());
        let (middle, normed) = self.model.join(stream, delta, after, next)?;
        Ok((AttentionHalf { saved, delta: kept, middle }, normed))
    }

    /// What both halves of a block leave; what was not kept is computed again, without what nobody reads.
    fn halves(
        &self,
        layer: usize,
        saved: SavedBlock,
        shared: &Shared<'_>,
    ) -> Result<(Tensor, AttentionHalf, MlpHalf), ModelError> {
        let SavedBlock { input, attention, mlp } = saved;
        let attention = match (attention, mlp) {
            (Some(attention), Some(mlp)) => return Ok((input, attention, mlp)),
            (attention, _) => attention,
        };
        let _layer = trace::span("layer_again", &self.model.device).at(layer);
        let block = &self.model.blocks[layer];
        let (attention, x) = match attention {
            Some(attention) => {
                let x = normed(&attention.middle, block.before_mlp.as_ref())?;
                (attention, x)
            }
            None => {
                let x = normed(&input, block.before_attention.as_ref())?;
                self.attention_half(layer, &input, &x, shared)?
            }
        };
        let adapter = self.block_adapter(layer);
        let down_is_adapted = adapter.is_some_and(|adapter| adapter.layer(Part::Down).is_some());
        let mlp = if block.after_mlp.is_some() || down_is_adapted {
            let (delta, saved) = mlp::forward(&block.mlp, &x, layer, adapter, shared)?;
            MlpHalf { saved, delta: block.after_mlp.as_ref().map(|_| delta) }
        } else {
            MlpHalf { saved: mlp::gate_and_up(&block.mlp, &x, layer, adapter, shared)?, delta: None }
        };
        Ok((input, attention, mlp))
    }

    /// From the gradient of the stream after a block to that of the stream before it, if it is `wanted`.
    fn block_back(
        &self,
        layer: usize,
        saved: SavedBlock,
        d_out: Tensor,
        wanted: bool,
        shared: &Shared<'_>,
        gradients: &BlockGradients,
    ) -> Result<Option<Tensor>, ModelError> {
        let (input, attention, mlp) = self.halves(layer, saved, shared)?;
        let middle = attention.middle;
        let _layer = trace::span("layer_backward", &self.model.device).at(layer);
        let (block, adapter) = (&self.model.blocks[layer], self.block_adapter(layer));
        let Block { before_attention, after_attention, before_mlp, after_mlp, .. } = block;
        let scale = shared.residual_scale;

        let d_delta = delta_back(&d_out, after_mlp.as_ref(), mlp.delta, scale, &gradients.after_mlp)?;
        let x = input_again(&middle, before_mlp.as_ref(), &gradients.parts, &[Part::Gate, Part::Up])?;
        let d_x = mlp::back(&block.mlp, &x, mlp.saved, &d_delta, layer, adapter, shared, &gradients.parts)?;
        add_norm_gradient_of(&gradients.before_mlp, &middle, before_mlp.as_ref(), &d_x)?;
        drop(x);
        let d_middle = input_back(&middle, before_mlp.as_ref(), d_x, d_out)?;

        let d_delta = delta_back(
            &d_middle,
            after_attention.as_ref(),
            attention.delta,
            scale,
            &gradients.after_attention,
        )?;
        let parts = [Part::Queries, Part::Keys, Part::Values];
        let x = input_again(&input, before_attention.as_ref(), &gradients.parts, &parts)?;
        let d_x = attention::back(
            &block.attention,
            &x,
            attention.saved,
            &d_delta,
            layer,
            wanted,
            adapter,
            shared,
            gradients,
        )?;
        let Some(d_x) = d_x else { return Ok(None) };
        add_norm_gradient_of(&gradients.before_attention, &input, before_attention.as_ref(), &d_x)?;
        Ok(Some(input_back(&input, before_attention.as_ref(), d_x, d_middle)?))
    }

    fn block_adapter(&self, layer: usize) -> Option<&BlockAdapter> {
        self.adapter.map(|adapter| adapter.block(layer))
    }
}

impl Shared<'_> {
    /// Who sees whom in an attention.
    fn packing(&self, params: AttentionParams) -> PackedAttention {
        PackedAttention { starts: self.starts.clone(), params, causal: true }
    }
}

/// The input of half a block.
fn normed(stream: &Tensor, norm: Option<&RmsNorm>) -> candle_core::Result<Tensor> {
    norm.map_or_else(|| Ok(stream.clone()), |norm| rms_norm(stream, norm))
}

/// The input of half a block for the gradients of its first products, where any of them is trained. Nobody reads the input
/// of the others.
fn input_again(
    stream: &Tensor,
    norm: Option<&RmsNorm>,
    gradients: &PartGradients,
    parts: &[Part],
) -> candle_core::Result<Tensor> {
    let is_read = parts.iter().any(|part| gradients.contains_key(part));
    if is_read { normed(stream, norm) } else { Ok(stream.clone()) }
}

/// The gradient of what half a block made, from that of the stream that it was added to.
fn delta_back(
    d_stream: &Tensor,
    after: Option<&RmsNorm>,
    delta: Option<Tensor>,
    scale: f32,
    sum: &Option<Tensor>,
) -> candle_core::Result<Tensor> {
    match (after, delta) {
        (Some(norm), Some(delta)) => {
            add_norm_gradient(sum, &delta, norm, d_stream, scale)?;
            rms_norm_backward(&delta, norm, d_stream, Some(ResidualGradient { past: None, scale }))
        }
        _ if scale == 1.0 => Ok(d_stream.clone()),
        _ => {
            trace::launched(1);
            d_stream * f64::from(scale)
        }
    }
}

/// The gradient of the stream before half a block: through its norm, and past the whole half.
fn input_back(
    stream: &Tensor,
    norm: Option<&RmsNorm>,
    d_x: Tensor,
    past: Tensor,
) -> candle_core::Result<Tensor> {
    match norm {
        Some(norm) => {
            let residual = ResidualGradient { past: Some(&past), scale: 1.0 };
            rms_norm_backward(stream, norm, &d_x, Some(residual))
        }
        None => {
            accumulate(&d_x, &past)?;
            Ok(d_x)
        }
    }
}

fn add_norm_gradient_of(
    sum: &Option<Tensor>,
    x: &Tensor,
    norm: Option<&RmsNorm>,
    dy: &Tensor,
) -> candle_core::Result<()> {
    norm.map_or(Ok(()), |norm| add_norm_gradient(sum, x, norm, dy, 1.0))
}

/// Adds the gradient of a norm's weight, if it is trained; the norm's result was multiplied by `scale`.
fn add_norm_gradient(
    sum: &Option<Tensor>,
    x: &Tensor,
    norm: &RmsNorm,
    dy: &Tensor,
    scale: f32,
) -> candle_core::Result<()> {
    let Some(sum) = sum else { return Ok(()) };
    let found = rms_norm_weight_backward(x, norm, dy)?;
    trace::launched(u64::from(scale != 1.0));
    accumulate(sum, &if scale == 1.0 { found } else { (found * f64::from(scale))? })
}

fn check(rows: &Rows<'_>, model: &Model) -> Result<(), ModelError> {
    let spec = &model.spec;
    let count = rows.tokens.len();
    if count == 0 {
        return Err(ModelError::EmptyInput);
    }
    let (vocab_size, limit) = (spec.vocab_size, spec.max_positions);
    if let Some(&token) = rows.tokens.iter().find(|&&token| token as usize >= vocab_size) {
        return Err(ModelError::TokenOutOfRange { token, vocab_size });
    }
    let lengths = rows.starts.windows(2).map(|pair| pair[1].saturating_sub(pair[0]) as usize);
    let longest = lengths.max().unwrap_or(0);
    if longest > limit {
        return Err(ModelError::ContextExceeded { length: longest, limit });
    }
    Ok(())
}
