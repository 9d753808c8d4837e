//! An adapter made ready for a model: matrices by block and part, in the type that the model computes in.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use metal_candle_kernels::{
    linear::Projection,
    lora::{LoraAdapter, LoraSegment, dora_norm, lora_in_place},
    trace,
};

use super::{Adapter, AdapterLayer, LoraError, Part};
use crate::model::Model;

/// An adapter that a model can run with. Immutable: share it with `Arc`.
#[derive(Debug, Clone)]
pub struct ActiveAdapter {
    blocks: Vec<BlockAdapter>,
}

/// The part of one block.
#[derive(Debug, Clone, Default)]
pub(crate) struct BlockAdapter {
    layers: BTreeMap<Part, ActiveLayer>,
}

/// What is added to one product.
#[derive(Debug, Clone)]
pub(crate) struct ActiveLayer {
    pub(crate) lora: LoraAdapter,
    /// What is added besides and never trained: PiSSA's first values, taken off again.
    pub(crate) frozen: Option<LoraAdapter>,
    pub(crate) dora: Option<ActiveDora>,
}

/// What a DoRA layer's sum is multiplied with, by outputs.
#[derive(Debug, Clone)]
pub(crate) struct ActiveDora {
    /// `[N]`
    pub(crate) magnitude: Tensor,
    /// `‖W + scale · B · A‖`, `[N]` in f32.
    pub(crate) norm: Tensor,
}

impl ActiveAdapter {
    /// Makes an adapter ready: checks it against the model, moves it there and works out DoRA's norms.
    pub fn new(adapter: &Adapter, model: &Model) -> Result<Self, LoraError> {
        adapter.check(model.spec())?;
        let adapter = adapter.to(model.device(), model.compute_dtype())?;
        Self::over(&adapter.layers, model)
    }

    /// Several adapters as one, each with a factor of its own: their ranks side by side.
    pub fn combine(adapters: &[(&Adapter, f32)], model: &Model) -> Result<Self, LoraError> {
        if let [(adapter, factor)] = adapters
            && *factor == 1.0
        {
            return Self::new(adapter, model);
        }
        let mut layers: BTreeMap<_, AdapterLayer> = BTreeMap::new();
        for (adapter, factor) in adapters {
            adapter.check(model.spec())?;
            let adapter = adapter.plain()?.to(model.device(), model.compute_dtype())?;
            for (site, layer) in adapter.layers {
                if layer.magnitude.is_some() {
                    return Err(LoraError::Setting {
                        name: "adapter",
                        value: "DoRA with others or with a factor".to_owned(),
                        expected: "a DoRA adapter can only be used alone and as it is",
                    });
                }
                let scaled = (&layer.lora.b * f64::from(layer.lora.scale * factor))?;
                let own = LoraAdapter { a: layer.lora.a, b: scaled, scale: 1.0 };
                let both = match layers.remove(&site) {
                    None => own,
                    Some(other) => LoraAdapter {
                        a: Tensor::cat(&[other.lora.a, own.a], 0)?,
                        b: Tensor::cat(&[other.lora.b, own.b], 1)?.contiguous()?,
                        scale: 1.0,
                    },
                };
                layers.insert(site, AdapterLayer { lora: both, magnitude: None, minus: None });
            }
        }
        Self::over(&layers, model)
    }

    /// Over matrices that fit the model and are where it is: they are shared, not copied. A fused module becomes one layer
    /// for each of its parts.
    pub(crate) fn over(
        layers: &BTreeMap<super::Site, AdapterLayer>,
        model: &Model,
    ) -> Result<Self, LoraError> {
        let spec = model.spec();
        let mut blocks = vec![BlockAdapter::default(); spec.layers.len()];
        for (site, layer) in layers {
            for (part, rows) in site.module.parts(spec, site.layer) {
                let (first, count) = (rows.start, rows.len());
                let part_of = |lora: &LoraAdapter, scale| -> Result<LoraAdapter, LoraError> {
                    Ok(LoraAdapter { a: lora.a.clone(), b: lora.b.narrow(0, first, count)?, scale })
                };
                let lora = part_of(&layer.lora, layer.lora.scale)?;
                let frozen = layer.minus.as_ref().map(|minus| part_of(minus, -minus.scale)).transpose()?;
                let dora = match &layer.magnitude {
                    None => None,
                    Some(magnitude) => {
                        let norm = dora_norm(&model.projection(site.layer, part).weight, &lora)?;
                        Some(ActiveDora { magnitude: magnitude.narrow(0, first, count)?, norm })
                    }
                };
                blocks[site.layer].layers.insert(part, ActiveLayer { lora, frozen, dora });
            }
        }
        Ok(Self { blocks })
    }

    /// The part of one block.
    pub(crate) fn block(&self, layer: usize) -> &BlockAdapter {
        &self.blocks[layer]
    }

    /// The first block that has any matrices.
    pub(crate) fn first_block(&self) -> Option<usize> {
        self.blocks.iter().position(|block| !block.layers.is_empty())
    }
}

impl BlockAdapter {
    /// What changes this product.
    pub(crate) fn layer(&self, part: Part) -> Option<&ActiveLayer> {
        self.layers.get(&part)
    }

    /// Whether nothing of the block is changed.
    pub(crate) fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }
}

impl ActiveLayer {
    /// `y`, some rows of `x · Wᵀ + bias`, with the adapter in it; `y` itself is changed.
    pub(crate) fn apply(&self, x: &Tensor, y: &Tensor, projection: &Projection) -> candle_core::Result<()> {
        let segment = LoraSegment { rows: 0..y.dim(0)?, adapter: &self.lora };
        if let Some(frozen) = &self.frozen {
            lora_in_place(x, y, &[LoraSegment { rows: 0..y.dim(0)?, adapter: frozen }])?;
        }
        let Some(dora) = &self.dora else { return lora_in_place(x, y, &[segment]) };
        let sum = dora.without_bias(y, projection)?;
        lora_in_place(x, &sum, &[segment])?;
        trace::launched(1);
        y.slice_set(&dora.scaled(&sum, projection)?, 0, 0)
    }
}

impl ActiveDora {
    /// A product of its own, without its bias.
    pub(crate) fn without_bias(&self, y: &Tensor, projection: &Projection) -> candle_core::Result<Tensor> {
        trace::launched(1);
        match &projection.bias {
            Some(bias) => y.broadcast_sub(&bias.to_dtype(y.dtype())?),
            None => y.copy(),
        }
    }

    /// `m / norm ⊙ x`
    pub(crate) fn scale_only(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        // A quotient and a product; half precision is widened and narrowed.
        trace::launched(if x.dtype() == DType::F32 { 2 } else { 4 });
        let scale = self.magnitude.to_dtype(DType::F32)?.div(&self.norm)?.to_dtype(x.dtype())?;
        x.broadcast_mul(&scale)
    }

    /// `m / norm ⊙ sum + bias`
    pub(crate) fn scaled(&self, sum: &Tensor, projection: &Projection) -> candle_core::Result<Tensor> {
        let scaled = self.scale_only(sum)?;
        trace::launched(u64::from(projection.bias.is_some()));
        match &projection.bias {
            Some(bias) => scaled.broadcast_add(&bias.to_dtype(sum.dtype())?),
            None => Ok(scaled),
        }
    }
}
