//! An adapter as data.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use metal_candle_kernels::lora::LoraAdapter;

use super::{Initialisation, LoraConfig, LoraError, Method, Scaling, Site};
use crate::model::spec::DecoderSpec;

/// Matrices for some places of a model. Immutable: share it with `Arc`.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// What it was made as.
    pub config: LoraConfig,
    /// Its matrices.
    pub layers: BTreeMap<Site, AdapterLayer>,
}

/// The matrices of one place.
#[derive(Debug, Clone)]
pub struct AdapterLayer {
    /// A `[r, K]`, B `[N, r]` and the factor of their product.
    pub lora: LoraAdapter,
    /// `[N]`, for DoRA.
    pub magnitude: Option<Tensor>,
    /// What the weight lost when training began (PiSSA): never trained, and subtracted wherever `lora` is added.
    pub minus: Option<LoraAdapter>,
}

impl Adapter {
    /// How many numbers are trained.
    pub fn parameters(&self) -> u64 {
        self.layers.values().map(AdapterLayer::parameters).sum()
    }

    /// The same matrices elsewhere, in another type.
    pub fn to(&self, device: &Device, dtype: DType) -> Result<Self, LoraError> {
        let mut layers = BTreeMap::new();
        for (&site, layer) in &self.layers {
            let factors = |lora: &LoraAdapter| factors_to(lora, device, dtype);
            let lora = factors(&layer.lora)?;
            let magnitude =
                layer.magnitude.as_ref().map(|tensor| tensor_to(tensor, device, dtype)).transpose()?;
            let minus = layer.minus.as_ref().map(factors).transpose()?;
            layers.insert(site, AdapterLayer { lora, magnitude, minus });
        }
        Ok(Self { config: self.config.clone(), layers })
    }

    /// The same change of the model without subtracted parts: they become half of twice the rank, as files have it.
    pub fn plain(&self) -> Result<Self, LoraError> {
        if self.layers.values().all(|layer| layer.minus.is_none()) {
            return Ok(self.clone());
        }
        let mut plain = self.clone();
        for layer in plain.layers.values_mut() {
            let Some(minus) = layer.minus.take() else { continue };
            let LoraAdapter { a, b, scale } = &layer.lora;
            let subtracted = (&minus.b * f64::from(-minus.scale / scale))?;
            layer.lora = LoraAdapter {
                a: Tensor::cat(&[a, &minus.a], 0)?,
                b: Tensor::cat(&[b, &subtracted], 1)?.contiguous()?,
                scale: *scale,
            };
        }
        let config = &mut plain.config;
        config.initialisation = Initialisation::Kaiming;
        config.rank *= 2;
        config.rank_pattern.values_mut().for_each(|rank| *rank *= 2);
        let factor = match &mut config.scaling {
            Scaling::Alpha(alpha) => {
                *alpha *= 2.0;
                2.0
            }
            Scaling::RankStabilised(alpha) => {
                *alpha *= std::f32::consts::SQRT_2;
                std::f32::consts::SQRT_2
            }
            Scaling::Factor(_) => 1.0,
        };
        config.alpha_pattern.values_mut().for_each(|alpha| *alpha *= factor);
        Ok(plain)
    }

    /// Whether every matrix has its place in the model, with the right shape; names all that have not.
    pub fn check(&self, spec: &DecoderSpec) -> Result<(), LoraError> {
        let places = spec.shapes();
        let mut misfits = Vec::new();
        for (site, layer) in &self.layers {
            let Some(place) = places.get(site) else {
                misfits.push(format!("{site}: the model has no such module"));
                continue;
            };
            let rank = layer.lora.rank();
            let magnitude =
                layer.magnitude.as_ref().map(|magnitude| ("magnitude", magnitude, vec![place.outputs]));
            let factors = [
                ("A", &layer.lora.a, vec![rank, place.inputs]),
                ("B", &layer.lora.b, vec![place.outputs, rank]),
            ];
            let minus = layer.minus.as_ref().map(|minus| {
                let rank = minus.rank();
                [
                    ("subtracted A", &minus.a, vec![rank, place.inputs]),
                    ("subtracted B", &minus.b, vec![place.outputs, rank]),
                ]
            });
            let expected = factors.into_iter().chain(magnitude).chain(minus.into_iter().flatten());
            for (name, found, expected) in expected {
                if found.dims() != expected {
                    misfits.push(format!("{site}: {name} is {:?}, expected {expected:?}", found.dims()));
                }
            }
            if (self.config.method == Method::Dora) != layer.magnitude.is_some() {
                misfits.push(format!("{site}: magnitudes belong to DoRA, and to all of its modules"));
            }
            if layer.minus.is_some() && layer.magnitude.is_some() {
                misfits.push(format!("{site}: DoRA goes without a subtracted part"));
            }
        }
        if misfits.is_empty() { Ok(()) } else { Err(LoraError::Misfit(misfits)) }
    }
}

impl AdapterLayer {
    /// How many numbers are trained.
    pub fn parameters(&self) -> u64 {
        let magnitude = self.magnitude.as_ref().map_or(0, Tensor::elem_count);
        (self.lora.a.elem_count() + self.lora.b.elem_count() + magnitude) as u64
    }
}

/// The same factors elsewhere, in another type.
pub(crate) fn factors_to(
    lora: &LoraAdapter,
    device: &Device,
    dtype: DType,
) -> candle_core::Result<LoraAdapter> {
    let to = |tensor: &Tensor| tensor_to(tensor, device, dtype);
    Ok(LoraAdapter { a: to(&lora.a)?, b: to(&lora.b)?, scale: lora.scale })
}

/// The same numbers elsewhere, in another type. Between devices candle moves whatever a view looks into, so the view is
/// copied first: what came from a file shares one buffer.
fn tensor_to(tensor: &Tensor, device: &Device, dtype: DType) -> candle_core::Result<Tensor> {
    let is_there = tensor.device().same_device(device);
    let moved = if is_there { tensor.clone() } else { tensor.force_contiguous()?.to_device(device)? };
    moved.to_dtype(dtype)?.contiguous()
}
