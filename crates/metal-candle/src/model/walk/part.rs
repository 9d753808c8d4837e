//! One product of a block with what an adapter adds to it, forward and backward.

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor};
use metal_candle_kernels::{
    accumulate::accumulate,
    dropout::{self, dropout},
    linear::{
        Projection, linear_backward, linear_backward_add, linear_bias_backward, linear_weight_backward,
    },
    lora::{
        LoraAdapter, LoraGradients, LoraMember, LoraProjections, LoraSegment, lora_backward,
        lora_backward_together, lora_down, lora_down_together, lora_in_place, lora_up_in_place,
        lora_up_together,
    },
};

use super::Shared;
use crate::lora::{ActiveLayer, BlockAdapter, Part};

/// Where the gradients of a block's products are added.
pub(crate) type PartGradients = BTreeMap<Part, PartSums>;

/// Where the gradients of one product are added.
#[derive(Debug, Default)]
pub(crate) struct PartSums {
    /// Of an adapter.
    pub(crate) lora: Option<LoraSums>,
    /// `[N, K]` of the weight itself.
    pub(crate) weight: Option<Tensor>,
    /// `[N]`
    pub(crate) bias: Option<Tensor>,
}

/// Gradients of an adapter's matrices, in f32.
#[derive(Debug)]
pub(crate) struct LoraSums {
    /// `[r, K]`
    pub(crate) a: Tensor,
    /// `[N, r]`
    pub(crate) b: Tensor,
    /// `[N]`
    pub(crate) magnitude: Option<Tensor>,
}

/// Which inputs of the adapters are left out. The same draw leaves out the same ones, on the way back as well.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dropout {
    pub(crate) probability: f32,
    pub(crate) seed: u64,
    /// Names the batch.
    pub(crate) draw: u64,
}

/// What the product of a part leaves for its way back.
#[derive(Debug, Default)]
struct SavedPart {
    /// `x · Aᵀ [T, r]`
    projected: Option<Tensor>,
    /// What DoRA scales, `[T, N]`.
    sum: Option<Tensor>,
}

/// What products of one input leave for their way back.
#[derive(Debug)]
pub(super) struct SavedParts<const COUNT: usize> {
    each: [SavedPart; COUNT],
    /// `x · Aᵀ` of all adapters, where they are plain: then nothing else is saved.
    together: Option<LoraProjections>,
}

/// What becomes of the gradient of a product's input.
#[derive(Clone, Copy)]
enum InputGradient<'a> {
    /// Nobody asks.
    Unwanted,
    /// A tensor of its own.
    New,
    /// It is added to another product's.
    AddTo(&'a Tensor),
}

/// A part of a block: where it is, what is multiplied, what is added.
#[derive(Clone, Copy)]
pub(super) struct PartOf<'a> {
    pub(super) part: Part,
    pub(super) layer: usize,
    pub(super) projection: &'a Projection,
    pub(super) active: Option<&'a ActiveLayer>,
}

/// Puts the adapters into the products `products` of `x`.
pub(super) fn adapt<const COUNT: usize>(
    parts: [PartOf<'_>; COUNT],
    x: &Tensor,
    products: [&Tensor; COUNT],
    shared: &Shared<'_>,
) -> Result<SavedParts<COUNT>> {
    let (active, adapted): (Vec<_>, Vec<_>) =
        parts.iter().zip(products).filter_map(|(part, y)| Some((part.active?, y))).unzip();
    let mut saved = SavedParts::nothing();
    if active.is_empty() {
        return Ok(saved);
    }
    if shared.dropout.is_none() && active.iter().all(|layer| layer.frozen.is_none() && layer.dora.is_none()) {
        let adapters: Vec<_> = active.iter().map(|layer| &layer.lora).collect();
        let projections = lora_down_together(x, &adapters)?;
        lora_up_together(&projections, &adapted, &adapters)?;
        saved.together = Some(projections);
        return Ok(saved);
    }
    for ((part, y), saved) in parts.iter().zip(products).zip(&mut saved.each) {
        *saved = part.adapt(x, y, shared)?;
    }
    Ok(saved)
}

/// Adds the gradients of what is trained in the products of `x`; returns that of `x`, if it is wanted.
pub(super) fn back<const COUNT: usize>(
    parts: [PartOf<'_>; COUNT],
    x: &Tensor,
    saved: &SavedParts<COUNT>,
    d_products: [&Tensor; COUNT],
    wanted: bool,
    shared: &Shared<'_>,
    gradients: &PartGradients,
) -> Result<Option<Tensor>> {
    let mut d_x: Option<Tensor> = None;
    for ((part, saved), dy) in parts.iter().zip(&saved.each).zip(d_products) {
        let into = match &d_x {
            _ if !wanted => InputGradient::Unwanted,
            None => InputGradient::New,
            Some(d_x) => InputGradient::AddTo(d_x),
        };
        let found = part.back(x, saved, dy, into, shared, gradients.get(&part.part))?;
        d_x = found.or(d_x);
    }
    let Some(projections) = &saved.together else { return Ok(d_x) };
    let active = parts.iter().zip(d_products).filter_map(|(part, dy)| Some((part, &part.active?.lora, dy)));
    let mut members = Vec::with_capacity(COUNT);
    for (part, adapter, dy) in active.clone() {
        if let Some(LoraSums { a, b, .. }) = gradients.get(&part.part).and_then(|sums| sums.lora.as_ref()) {
            members.push(LoraMember { adapter, dy, da: a, db: b });
        }
    }
    if members.len() == projections.each().len() {
        lora_backward_together(x, projections, &members, d_x.as_ref())?;
        return Ok(d_x);
    }
    for ((part, adapter, dy), projected) in active.zip(projections.each()) {
        let sums = gradients.get(&part.part).and_then(|sums| sums.lora.as_ref());
        part.adapter_back(x, projected, dy, d_x.as_ref(), shared, sums, adapter)?;
    }
    Ok(d_x)
}

impl<const COUNT: usize> SavedParts<COUNT> {
    /// What products without adapters leave.
    pub(super) const fn nothing() -> Self {
        Self { each: [const { SavedPart { projected: None, sum: None } }; COUNT], together: None }
    }
}

impl<'a> PartOf<'a> {
    pub(super) fn new(
        part: Part,
        layer: usize,
        projection: &'a Projection,
        adapter: Option<&'a BlockAdapter>,
    ) -> Self {
        Self { part, layer, projection, active: adapter.and_then(|adapter| adapter.layer(part)) }
    }

    /// Puts the adapter into the product `y` of `x`.
    fn adapt(&self, x: &Tensor, y: &Tensor, shared: &Shared<'_>) -> Result<SavedPart> {
        let Some(active) = self.active else { return Ok(SavedPart::default()) };
        if let Some(frozen) = &active.frozen {
            lora_in_place(x, y, &[LoraSegment { rows: 0..x.dim(0)?, adapter: frozen }])?;
        }
        let x = self.dropped(x, shared)?;
        let projected = lora_down(&x, &active.lora)?;
        let sum = match &active.dora {
            None => {
                lora_up_in_place(&projected, y, &active.lora)?;
                None
            }
            Some(dora) => {
                let sum = dora.without_bias(y, self.projection)?;
                lora_up_in_place(&projected, &sum, &active.lora)?;
                y.slice_set(&dora.scaled(&sum, self.projection)?, 0, 0)?;
                Some(sum)
            }
        };
        Ok(SavedPart { projected: Some(projected), sum })
    }

    /// Adds the gradients of what is trained; returns that of `x`, if it is wanted.
    fn back(
        &self,
        x: &Tensor,
        saved: &SavedPart,
        dy: &Tensor,
        wanted: InputGradient<'_>,
        shared: &Shared<'_>,
        sums: Option<&PartSums>,
    ) -> Result<Option<Tensor>> {
        if let Some(sum) = sums.and_then(|sums| sums.weight.as_ref()) {
            accumulate(sum, &linear_weight_backward(x, dy)?)?;
        }
        if let Some(sum) = sums.and_then(|sums| sums.bias.as_ref()) {
            accumulate(sum, &linear_bias_backward(dy)?)?;
        }
        let lora_sums = sums.and_then(|sums| sums.lora.as_ref());
        let (Some(active), Some(projected)) = (self.active, &saved.projected) else {
            return self.input_gradient(dy, wanted);
        };
        let scaled = match (&active.dora, &saved.sum) {
            (Some(dora), Some(sum)) => {
                if let Some(of_magnitude) = lora_sums.and_then(|sums| sums.magnitude.as_ref()) {
                    let along = (dy.to_dtype(DType::F32)? * sum.to_dtype(DType::F32)?)?.sum(0)?;
                    accumulate(of_magnitude, &along.div(&dora.norm)?)?;
                }
                Some(dora.scale_only(dy)?)
            }
            _ => None,
        };
        let dy = scaled.as_ref().unwrap_or(dy);
        let dx = self.input_gradient(dy, wanted)?;
        if let (Some(dx), Some(frozen)) = (&dx, &active.frozen) {
            accumulate(dx, &through(dy, frozen)?)?;
        }
        self.adapter_back(x, projected, dy, dx.as_ref(), shared, lora_sums, &active.lora)?;
        Ok(dx)
    }

    fn input_gradient(&self, dy: &Tensor, wanted: InputGradient<'_>) -> Result<Option<Tensor>> {
        match wanted {
            InputGradient::Unwanted => Ok(None),
            InputGradient::New => linear_backward(dy, self.projection).map(Some),
            InputGradient::AddTo(dx) => {
                linear_backward_add(dy, self.projection, dx)?;
                Ok(Some(dx.clone()))
            }
        }
    }

    /// Adds the gradients of A and B, and what of the gradient of `x` goes through them.
    #[allow(clippy::too_many_arguments)]
    fn adapter_back(
        &self,
        x: &Tensor,
        projected: &Tensor,
        dy: &Tensor,
        dx: Option<&Tensor>,
        shared: &Shared<'_>,
        sums: Option<&LoraSums>,
        lora: &LoraAdapter,
    ) -> Result<()> {
        let Some(LoraSums { a, b, .. }) = sums else {
            return dx.map_or(Ok(()), |dx| accumulate(dx, &through(dy, lora)?));
        };
        let dropped = self.dropped(x, shared)?;
        if shared.dropout.is_none() {
            return lora_backward(&dropped, dy, lora, projected, &LoraGradients { dx, da: a, db: b });
        }
        let through_dropout = dx.map(Tensor::zeros_like).transpose()?;
        let into = LoraGradients { dx: through_dropout.as_ref(), da: a, db: b };
        lora_backward(&dropped, dy, lora, projected, &into)?;
        match (dx, through_dropout) {
            (Some(dx), Some(found)) => accumulate(dx, &self.dropped(&found, shared)?),
            _ => Ok(()),
        }
    }

    /// What is left of `x`; also the way back of that.
    fn dropped(&self, x: &Tensor, shared: &Shared<'_>) -> Result<Tensor> {
        let Some(Dropout { probability, seed, draw }) = shared.dropout else { return Ok(x.clone()) };
        // Every product of every batch has 2³² numbers of its own.
        let parts = Part::ALL.len() as u64;
        let layers = shared.model.blocks.len() as u64;
        let stream = (draw * layers + self.layer as u64) * parts + self.part as u64;
        dropout(x, &dropout::Dropout { probability, seed, first: stream << 32 })
    }
}

/// The gradient of `x` through a delta that is not trained.
fn through(dy: &Tensor, lora: &LoraAdapter) -> Result<Tensor> {
    let down = Projection { weight: lora.a.clone(), bias: None };
    let up = Projection { weight: lora.b.clone(), bias: None };
    linear_backward(&(linear_backward(dy, &up)? * f64::from(lora.scale))?, &down)
}
