//! The two halves of a block, built from a spec and weights. They call kernels and never choose a backend.
//!
//! Rows: all new tokens of all sequences of a batch, one after another.

use std::ops::Range;

use candle_core::Tensor;
use metal_candle_kernels::{
    attention::{AttentionParams, Segment, attention},
    gated::gated,
    linear::{Activation, Projection, gated_linear, linear, linear_many},
    rms_norm::{RmsNorm, rms_norm},
    rope::{Rotation, rope},
    trace,
};

use super::{
    ModelError,
    decoder::SequenceInput,
    spec::{AttentionSpec, MlpSpec, NormSpec, QkNorm},
    weights::{Weights, WeightsError},
};
use crate::lora::{ActiveAdapter, BlockAdapter, Part};

/// Takes a block's weights by name.
pub(super) struct BlockWeights<'a> {
    pub(super) weights: &'a mut Weights,
    pub(super) prefix: String,
}

impl BlockWeights<'_> {
    fn tensor(&mut self, name: &str) -> Result<Tensor, WeightsError> {
        self.weights.take(&format!("{}{name}", self.prefix))
    }

    fn projection(&mut self, name: &str, bias: bool) -> Result<Projection, WeightsError> {
        let weight = self.tensor(&format!("{name}.weight"))?;
        let bias = if bias { Some(self.tensor(&format!("{name}.bias"))?) } else { None };
        Ok(Projection { weight, bias })
    }

    pub(super) fn norm(&mut self, name: &str, spec: NormSpec) -> Result<RmsNorm, WeightsError> {
        let weight = self.tensor(&format!("{name}.weight"))?;
        Ok(RmsNorm { weight, epsilon: spec.epsilon, weight_offset: spec.weight_offset })
    }
}

/// Attention with its projections.
#[derive(Debug)]
pub(super) struct Attention {
    pub(super) spec: AttentionSpec,
    pub(super) queries: Projection,
    pub(super) keys: Projection,
    pub(super) values: Projection,
    pub(super) output: Projection,
    pub(super) query_norm: Option<RmsNorm>,
    pub(super) key_norm: Option<RmsNorm>,
}

impl Attention {
    pub(super) fn new(
        spec: AttentionSpec,
        norm: NormSpec,
        from: &mut BlockWeights<'_>,
    ) -> Result<Self, ModelError> {
        let (query_size, key_size) = (spec.query_size(), spec.key_size());
        let [queries, keys, values] = if spec.fused {
            let all = from.projection("self_attn.qkv_proj", spec.input_bias)?;
            let first_value = query_size + key_size;
            [
                rows(&all, 0, query_size)?,
                rows(&all, query_size, key_size)?,
                rows(&all, first_value, key_size)?,
            ]
        } else {
            [
                from.projection("self_attn.q_proj", spec.input_bias)?,
                from.projection("self_attn.k_proj", spec.input_bias)?,
                from.projection("self_attn.v_proj", spec.input_bias)?,
            ]
        };
        let output = from.projection("self_attn.o_proj", spec.output_bias)?;
        let (query_norm, key_norm) = match spec.qk_norm {
            QkNorm::None => (None, None),
            _ => (Some(from.norm("self_attn.q_norm", norm)?), Some(from.norm("self_attn.k_norm", norm)?)),
        };
        Ok(Self { spec, queries, keys, values, output, query_norm, key_norm })
    }

    /// `x [rows, hidden] → [rows, hidden]`; appends the rows' keys and values to `layer` of every cache.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        layer: usize,
        batch: &mut [SequenceInput<'_>],
        rotations: &[Rotation],
        adapters: &[(Range<usize>, &BlockAdapter)],
    ) -> candle_core::Result<Tensor> {
        let _attention = trace::span("attention_half", x.device());
        let count = x.dim(0)?;
        let AttentionSpec { heads, kv_heads, head_dim, .. } = self.spec;
        let [queries, keys, values] = linear_many(x, [&self.queries, &self.keys, &self.values])?;
        for (part, y) in [(Part::Queries, &queries), (Part::Keys, &keys), (Part::Values, &values)] {
            adapt(adapters, part, x, y, self.projection(part))?;
        }
        let queries = self.position(queries, heads, self.query_norm.as_ref(), rotations)?;
        let keys = self.position(keys, kv_heads, self.key_norm.as_ref(), rotations)?;
        let values = values.reshape((count, kv_heads, head_dim))?;

        let mut first = 0;
        for sequence in batch.iter_mut() {
            let (position, rows) = (sequence.cache.len(), first..first + sequence.tokens.len());
            first = rows.end;
            sequence.cache.layer(layer).write(position, &keys, &values, rows)?;
        }

        let mut first = 0;
        let segments = batch.iter_mut().map(|sequence| {
            let rows = first..first + sequence.tokens.len();
            first = rows.end;
            let end = sequence.cache.len() + rows.len();
            let (start, chunks) = sequence.cache.layer(layer).chunks();
            Segment { rows, start, end, chunks }
        });
        let segments: Vec<_> = segments.collect();
        let params = AttentionParams {
            scale: self.spec.scale,
            soft_cap: self.spec.soft_cap,
            window: self.spec.window,
        };
        let mixed = attention(&queries, &segments, params)?; // [rows, heads, head_dim]
        let mixed = mixed.reshape((count, heads * head_dim))?;
        let y = linear(&mixed, &self.output)?;
        adapt(adapters, Part::Output, &mixed, &y, &self.output)?;
        Ok(y)
    }

    /// The frozen product of a part.
    pub(super) fn projection(&self, part: Part) -> &Projection {
        match part {
            Part::Queries => &self.queries,
            Part::Keys => &self.keys,
            Part::Values => &self.values,
            _ => &self.output,
        }
    }

    /// Norm and rotation of queries or keys: `[rows, heads · head_dim] → [rows, heads, head_dim]`.
    pub(super) fn position(
        &self,
        x: Tensor,
        heads: usize,
        norm: Option<&RmsNorm>,
        rotations: &[Rotation],
    ) -> candle_core::Result<Tensor> {
        let count = x.dim(0)?;
        let split = (count, heads, self.spec.head_dim);
        let x = match (norm, self.spec.qk_norm) {
            (Some(norm), QkNorm::Whole) => rms_norm(&x, norm)?.reshape(split)?,
            (Some(norm), _) => rms_norm(&x.reshape(split)?, norm)?,
            (None, _) => x.reshape(split)?,
        };
        match self.spec.rope {
            Some(index) => rope(&x, &rotations[index]),
            None => Ok(x),
        }
    }
}

/// A gated MLP.
#[derive(Debug)]
pub(super) struct Mlp {
    pub(super) gate: Projection,
    pub(super) up: Projection,
    pub(super) down: Projection,
    pub(super) activation: Activation,
}

impl Mlp {
    pub(super) fn new(spec: MlpSpec, from: &mut BlockWeights<'_>) -> Result<Self, ModelError> {
        let size = spec.intermediate_size;
        let (gate, up) = if spec.fused {
            let both = from.projection("mlp.gate_up_proj", spec.bias)?;
            (rows(&both, 0, size)?, rows(&both, size, size)?)
        } else {
            (from.projection("mlp.gate_proj", spec.bias)?, from.projection("mlp.up_proj", spec.bias)?)
        };
        let down = from.projection("mlp.down_proj", spec.bias)?;
        Ok(Self { gate, up, down, activation: spec.activation })
    }

    /// `x [rows, hidden] → [rows, hidden]`
    pub(super) fn forward(
        &self,
        x: &Tensor,
        adapters: &[(Range<usize>, &BlockAdapter)],
    ) -> candle_core::Result<Tensor> {
        let _mlp = trace::span("mlp_half", x.device());
        let is_changed = |part| adapters.iter().any(|(_, adapter)| adapter.layer(part).is_some());
        let middle = if is_changed(Part::Gate) || is_changed(Part::Up) {
            let [gate, up] = linear_many(x, [&self.gate, &self.up])?;
            adapt(adapters, Part::Gate, x, &gate, &self.gate)?;
            adapt(adapters, Part::Up, x, &up, &self.up)?;
            gated(&gate, &up, self.activation)?
        } else {
            gated_linear(x, &self.gate, &self.up, self.activation)?
        };
        let y = linear(&middle, &self.down)?;
        adapt(adapters, Part::Down, &middle, &y, &self.down)?;
        Ok(y)
    }

    /// The frozen product of a part.
    pub(super) fn projection(&self, part: Part) -> &Projection {
        match part {
            Part::Gate => &self.gate,
            Part::Up => &self.up,
            _ => &self.down,
        }
    }
}

/// Which rows of a batch have which adapter.
pub(super) struct AdaptedRows<'a> {
    runs: Vec<(Range<usize>, &'a ActiveAdapter)>,
}

impl<'a> AdaptedRows<'a> {
    /// Neighbouring sequences with the same adapter share a run.
    pub(super) fn of(batch: &[SequenceInput<'a>]) -> Self {
        let mut runs: Vec<(Range<usize>, &'a ActiveAdapter)> = Vec::new();
        let mut first = 0;
        for sequence in batch {
            let rows = first..first + sequence.tokens.len();
            first = rows.end;
            let Some(adapter) = sequence.adapter else { continue };
            match runs.last_mut() {
                Some((run, last)) if run.end == rows.start && std::ptr::eq(*last, adapter) => {
                    run.end = rows.end;
                }
                _ => runs.push((rows, adapter)),
            }
        }
        Self { runs }
    }

    /// The adapters' parts of one block.
    pub(super) fn block(&self, layer: usize) -> Vec<(Range<usize>, &'a BlockAdapter)> {
        let of = |(rows, adapter): &(Range<usize>, &'a ActiveAdapter)| (rows.clone(), adapter.block(layer));
        self.runs.iter().map(of).filter(|(_, block)| !block.is_empty()).collect()
    }
}

/// Puts the adapters into their rows of a product `y` of `x`.
fn adapt(
    adapters: &[(Range<usize>, &BlockAdapter)],
    part: Part,
    x: &Tensor,
    y: &Tensor,
    projection: &Projection,
) -> candle_core::Result<()> {
    for (rows, adapter) in adapters {
        if let Some(layer) = adapter.layer(part) {
            let [x, y] = [x, y].map(|tensor| tensor.narrow(0, rows.start, rows.len()));
            layer.apply(&x?, &y?, projection)?;
        }
    }
    Ok(())
}

/// Some rows of a stacked projection, as a view.
fn rows(stacked: &Projection, first: usize, count: usize) -> candle_core::Result<Projection> {
    let weight = stacked.weight.narrow(0, first, count)?;
    let bias = stacked.bias.as_ref().map(|bias| bias.narrow(0, first, count)).transpose()?;
    Ok(Projection { weight, bias })
}
