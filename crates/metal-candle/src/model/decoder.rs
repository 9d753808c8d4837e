//! The one forward loop of every decoder.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use metal_candle_kernels::{
    cross_entropy::{IGNORED, Loss, LossParams, lm_head_loss},
    embedding::embedding,
    linear::{Projection, linear},
    rms_norm::{RmsNorm, add_rms_norm, rms_norm, rms_norm_add},
    rope::{Pairs, Rotation},
    trace,
};

use super::{
    Config, ModelError, arch,
    layers::{AdaptedRows, Attention, BlockWeights, Mlp},
    rope::RopeSpec,
    spec::DecoderSpec,
    weights::{Checkpoint, Weights},
};
use crate::{
    cache::KvCache,
    lora::{ActiveAdapter, Part},
};

/// A decoder with its weights. Immutable: share it with `Arc`.
#[derive(Debug)]
pub struct Model {
    pub(super) spec: DecoderSpec,
    pub(super) embedding: Tensor, // [vocab, hidden]
    pub(super) embedding_scale: f32,
    pub(super) blocks: Vec<Block>,
    pub(super) final_norm: RmsNorm,
    pub(super) head: Projection,
    pub(super) device: Device,
    pub(super) compute: DType,
}

/// How to load a model.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where the weights go.
    pub device: Device,
    /// Converts the weights; by default they keep the dtype of their file.
    pub dtype: Option<DType>,
    /// Unknown `config.json` keys that the caller knows to be harmless.
    pub ignore_config_keys: Vec<String>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { device: Device::Cpu, dtype: None, ignore_config_keys: Vec::new() }
    }
}

/// The new tokens of one sequence of a batch.
#[derive(Debug)]
pub struct SequenceInput<'a> {
    /// Tokens to run, following what the cache holds.
    pub tokens: &'a [u32],
    /// The sequence's cache; longer by `tokens` afterwards.
    pub cache: &'a mut KvCache,
    /// Which of the rows get logits.
    pub logits: LogitsFor,
    /// What changes the model for this sequence.
    pub adapter: Option<&'a ActiveAdapter>,
}

/// Which rows of a sequence get logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitsFor {
    /// None: a piece of a prompt.
    None,
    /// The last one.
    Last,
    /// All.
    All,
}

#[derive(Debug)]
pub(super) struct Block {
    pub(super) attention: Attention,
    pub(super) mlp: Mlp,
    pub(super) before_attention: Option<RmsNorm>,
    pub(super) after_attention: Option<RmsNorm>,
    pub(super) before_mlp: Option<RmsNorm>,
    pub(super) after_mlp: Option<RmsNorm>,
}

impl Model {
    /// Loads a folder: `config.json` and safetensors. `progress` is told bytes done and bytes in all.
    pub fn load(
        folder: &Path,
        options: &LoadOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, ModelError> {
        let spec = arch::read(&Config::load(folder)?, &options.ignore_config_keys)?;
        let mut checkpoint = Checkpoint::open(folder)?;
        checkpoint.check(&spec.tensors(), |name| is_without_effect(&spec, name))?;
        let weights = checkpoint.load(&options.device, options.dtype, progress)?;
        Self::new(spec, weights, &options.device)
    }

    /// Builds a model from weights that fit the spec.
    pub fn new(spec: DecoderSpec, mut weights: Weights, device: &Device) -> Result<Self, ModelError> {
        let embedding = weights.take("model.embed_tokens.weight")?;
        let mut blocks = Vec::with_capacity(spec.layers.len());
        for index in 0..spec.layers.len() {
            blocks.push(Block::new(&spec, index, &mut weights)?);
        }
        let mut outer = BlockWeights { weights: &mut weights, prefix: "model.".to_owned() };
        let final_norm = outer.norm("norm", spec.norm)?;
        let head = if spec.head.tied { embedding.clone() } else { weights.take("lm_head.weight")? };
        // Accelerators compute in the weights' dtype; the CPU widens weights in registers and computes in f32.
        let compute = if device.is_cpu() { DType::F32 } else { embedding.dtype() };
        let embedding_scale = rounded_to(spec.embedding_scale, embedding.dtype());
        let head = Projection { weight: head, bias: None };
        Ok(Self {
            spec,
            embedding,
            embedding_scale,
            blocks,
            final_norm,
            head,
            device: device.clone(),
            compute,
        })
    }

    /// What the model is.
    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// Where it runs.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The dtype of the weights.
    pub fn dtype(&self) -> DType {
        self.embedding.dtype()
    }

    /// The dtype of activations.
    pub fn compute_dtype(&self) -> DType {
        self.compute
    }

    /// An empty cache for a new sequence.
    pub fn new_cache(&self) -> KvCache {
        KvCache::new(&self.spec, self.compute, &self.device)
    }

    /// Empties a cache whose keys do not fit a sequence that is to grow to `length` tokens (LongRoPE, once,
    /// when it leaves the original context); the whole sequence then has to run again.
    pub fn restart_if_outgrown(&self, cache: &mut KvCache, length: usize) -> Result<(), ModelError> {
        let cached = cache.rotary_length(0);
        if !cache.is_empty() && self.spec.ropes.iter().any(|rope| rope.outgrown(cached, length)) {
            cache.truncate(0)?;
            cache.expect(length);
        }
        Ok(())
    }

    /// Runs the new tokens of every sequence in one batch; returns the logits `[rows asked for, vocab]`, in
    /// the order of the batch, in f32.
    pub fn forward(&self, batch: &mut [SequenceInput<'_>]) -> Result<Tensor, ModelError> {
        let hidden = self.forward_hidden(batch)?;
        match selected_rows(batch) {
            Selection::All => self.logits(&hidden),
            // The head may be a third of the model: it must not be read for nothing.
            Selection::Some(rows) if rows.is_empty() => {
                Ok(Tensor::zeros((0, self.spec.vocab_size), DType::F32, &self.device)?)
            }
            Selection::Some(rows) => {
                trace::launched(1);
                let rows = Tensor::new(rows, &self.device)?;
                self.logits(&hidden.index_select(&rows, 0)?)
            }
        }
    }

    /// Runs the new tokens of every sequence in one batch; returns their last hidden states after the final
    /// norm, `[rows, hidden]`. The caches are longer afterwards.
    pub fn forward_hidden(&self, batch: &mut [SequenceInput<'_>]) -> Result<Tensor, ModelError> {
        self.check(batch)?;
        let _forward = trace::span("forward", &self.device);
        trace::sample(&self.device);
        let tokens: Vec<u32> = batch.iter().flat_map(|sequence| sequence.tokens).copied().collect();
        let rotations = self.rotations(batch)?;
        let adapters = AdaptedRows::of(batch);
        let mut stream = embedding(&self.embedding, &tokens, self.embedding_scale, self.compute)?; // [rows, hidden]
        let mut normed = match self.blocks.first().and_then(|block| block.before_attention.as_ref()) {
            Some(norm) => rms_norm(&stream, norm)?,
            None => stream.clone(),
        };
        for (layer, block) in self.blocks.iter().enumerate() {
            let _layer = trace::span("layer", &self.device).at(layer);
            let adapters = adapters.block(layer);
            let delta = block.attention.forward(&normed, layer, batch, &rotations, &adapters)?;
            let (after, next) = (block.after_attention.as_ref(), block.before_mlp.as_ref());
            (stream, normed) = self.join(&stream, delta, after, next)?;

            let delta = block.mlp.forward(&normed, &adapters)?;
            let next = match self.blocks.get(layer + 1) {
                Some(following) => following.before_attention.as_ref(),
                None => Some(&self.final_norm),
            };
            (stream, normed) = self.join(&stream, delta, block.after_mlp.as_ref(), next)?;
        }
        for sequence in batch {
            sequence.cache.advance(sequence.tokens.len());
        }
        Ok(normed)
    }

    /// `hidden [rows, hidden] → [rows, vocab]` in f32.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        let _head = trace::span("head", &self.device);
        trace::launched(u64::from(hidden.dtype() != DType::F32));
        let mut logits = linear(hidden, &self.head)?.to_dtype(DType::F32)?;
        if self.spec.head.scale != 1.0 {
            trace::launched(1);
            logits = (logits * f64::from(self.spec.head.scale))?;
        }
        if let Some(cap) = self.spec.head.soft_cap {
            trace::launched(3);
            logits = ((logits / f64::from(cap))?.tanh()? * f64::from(cap))?;
        }
        Ok(logits)
    }

    /// −log p of the token that each row of `hidden [rows, hidden]` is to predict, where there is one. Never holds all
    /// logits.
    pub fn loss(&self, hidden: &Tensor, targets: &[Option<u32>]) -> Result<Loss, ModelError> {
        let targets: Vec<u32> = targets.iter().map(|target| target.unwrap_or(IGNORED)).collect();
        let head = &self.spec.head;
        let params = LossParams { soft_cap: head.soft_cap, logit_scale: head.scale, ..LossParams::default() };
        Ok(lm_head_loss(hidden, &self.head, &targets, &params)?)
    }

    /// Adds what half a block made to the stream; returns the stream and the input of the next half.
    pub(super) fn join(
        &self,
        stream: &Tensor,
        delta: Tensor,
        after: Option<&RmsNorm>,
        next: Option<&RmsNorm>,
    ) -> Result<(Tensor, Tensor), ModelError> {
        let scale = self.spec.residual_scale;
        Ok(match (after, next) {
            (None, Some(next)) => add_rms_norm(stream, &delta, scale, next)?,
            (Some(after), Some(next)) => add_rms_norm(stream, &rms_norm(&delta, after)?, scale, next)?,
            (Some(after), None) => {
                let stream = rms_norm_add(stream, &delta, scale, after)?;
                (stream.clone(), stream)
            }
            (None, None) => {
                trace::launched(2);
                let stream = (stream + (delta * f64::from(scale))?)?;
                (stream.clone(), stream)
            }
        })
    }

    /// The frozen product of a part.
    pub(crate) fn projection(&self, layer: usize, part: Part) -> &Projection {
        self.blocks[layer].projection(part)
    }

    fn check(&self, batch: &[SequenceInput<'_>]) -> Result<(), ModelError> {
        let limit = self.spec.max_positions;
        for sequence in batch {
            if sequence.tokens.is_empty() {
                return Err(ModelError::EmptyInput);
            }
            let length = sequence.cache.len() + sequence.tokens.len();
            if length > limit {
                return Err(ModelError::ContextExceeded { length, limit });
            }
            let vocab_size = self.spec.vocab_size;
            if let Some(&token) = sequence.tokens.iter().find(|&&token| token as usize >= vocab_size) {
                return Err(ModelError::TokenOutOfRange { token, vocab_size });
            }
        }
        if batch.is_empty() { Err(ModelError::EmptyInput) } else { Ok(()) }
    }

    /// The rotation of every row, once for each distinct rotary embedding.
    fn rotations(&self, batch: &[SequenceInput<'_>]) -> Result<Vec<Rotation>, ModelError> {
        let spans = batch.iter().map(|sequence| {
            let (first, count) = (sequence.cache.len(), sequence.tokens.len());
            (first, count, sequence.cache.rotary_length(count))
        });
        self.spec.ropes.iter().map(|rope| self.rotation(rope, spans.clone())).collect()
    }

    /// The rotation of rows in spans: the first position, how many follow, and the length that a frequency may depend on.
    pub(super) fn rotation(
        &self,
        rope: &RopeSpec,
        spans: impl Iterator<Item = (usize, usize, usize)> + Clone,
    ) -> Result<Rotation, ModelError> {
        let pairs = rope.rotary_dim / 2;
        let rows: usize = spans.clone().map(|(_, count, _)| count).sum();
        let (mut cos, mut sin) = (Vec::with_capacity(rows * pairs), Vec::with_capacity(rows * pairs));
        let factor = rope.attention_factor();
        let mut frequencies = Vec::new();
        for (first, count, length) in spans {
            if frequencies.is_empty() || rope.depends_on_length() {
                frequencies = rope.frequencies(length);
            }
            for position in first..first + count {
                for frequency in &frequencies {
                    let (sine, cosine) = (position as f32 * frequency).sin_cos();
                    cos.push(cosine * factor);
                    sin.push(sine * factor);
                }
            }
        }
        let cos = Tensor::from_vec(cos, (rows, pairs), &self.device)?;
        let sin = Tensor::from_vec(sin, (rows, pairs), &self.device)?;
        Ok(Rotation { cos, sin, pairs: Pairs::Halves })
    }
}

impl Block {
    fn new(spec: &DecoderSpec, index: usize, weights: &mut Weights) -> Result<Self, ModelError> {
        let layer = &spec.layers[index];
        let mut from = BlockWeights { weights, prefix: format!("model.layers.{index}.") };
        let attention = Attention::new(layer.attention, spec.norm, &mut from)?;
        let mlp = Mlp::new(layer.mlp, &mut from)?;
        let mut norms = Vec::new();
        for name in layer.norms.names() {
            norms.push(from.norm(name, spec.norm)?);
        }
        let [before_attention, after_attention, before_mlp, after_mlp] = layer.norms.place(norms);
        Ok(Self { attention, mlp, before_attention, after_attention, before_mlp, after_mlp })
    }
}

impl Block {
    fn projection(&self, part: Part) -> &Projection {
        match part {
            Part::Queries | Part::Keys | Part::Values | Part::Output => self.attention.projection(part),
            Part::Gate | Part::Up | Part::Down => self.mlp.projection(part),
        }
    }
}

enum Selection {
    All,
    Some(Vec<u32>),
}

/// The rows of the batch that get logits.
fn selected_rows(batch: &[SequenceInput<'_>]) -> Selection {
    if batch.iter().all(|sequence| sequence.logits == LogitsFor::All || last_is_all(sequence)) {
        return Selection::All;
    }
    let mut rows = Vec::new();
    let mut first = 0;
    for sequence in batch {
        let end = first + sequence.tokens.len() as u32;
        match sequence.logits {
            LogitsFor::None => {}
            LogitsFor::Last => rows.push(end - 1),
            LogitsFor::All => rows.extend(first..end),
        }
        first = end;
    }
    Selection::Some(rows)
}

fn last_is_all(sequence: &SequenceInput<'_>) -> bool {
    sequence.logits == LogitsFor::Last && sequence.tokens.len() == 1
}

/// Tensors that some exporters leave in a file and that no forward pass reads.
pub(crate) fn is_without_effect(spec: &DecoderSpec, name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
        || name.ends_with(".attn.masked_bias")
        || (spec.head.tied && name == "lm_head.weight")
}

/// Gemma's scale was trained as a number of the weights' dtype.
fn rounded_to(scale: f32, dtype: DType) -> f32 {
    match dtype {
        DType::BF16 => half::bf16::from_f32(scale).to_f32(),
        DType::F16 => half::f16::from_f32(scale).to_f32(),
        _ => scale,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_prompt_piece_without_logits_never_reads_the_head() {
        let config = br#"{
            "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 11, "max_position_embeddings": 8,
            "rms_norm_eps": 1e-5, "tie_word_embeddings": false
        }"#;
        let spec = arch::read(&Config::from_slice(config).unwrap(), &[]).unwrap();
        // A head that does not fit fails as soon as it is used.
        let tensors: Vec<_> =
            spec.tensors().into_iter().filter(|(name, _)| name != "lm_head.weight").collect();
        let unfit = [(String::from("lm_head.weight"), vec![11, 3])];
        let all = [tensors, unfit.to_vec()].concat();
        let weights = Weights::random(&all, DType::F32, &Device::Cpu, 1).unwrap();
        let model = Model::new(spec, weights, &Device::Cpu).unwrap();
        let run = |logits| {
            let mut cache = model.new_cache();
            let logits = model.forward(&mut [SequenceInput {
                tokens: &[1, 2, 3],
                cache: &mut cache,
                logits,
                adapter: None,
            }])?;
            assert_eq!(cache.len(), 3);
            Ok::<_, ModelError>(logits.dims2()?)
        };
        assert_eq!(run(LogitsFor::None).unwrap(), (0, 11));
        assert!(run(LogitsFor::Last).is_err());
    }
}
