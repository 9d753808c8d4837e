//! An adapter as data.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use metal_candle_kernels::lora::LoraAdapter;

use super::{LoraConfig, LoraError, Method, Site};
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
}

impl Adapter {
    /// How many numbers it holds.
    pub fn parameters(&self) -> u64 {
        let of = |layer: &AdapterLayer| {
            let magnitude = layer.magnitude.as_ref().map_or(0, Tensor::elem_count);
            layer.lora.a.elem_count() + layer.lora.b.elem_count() + magnitude
        };
        self.layers.values().map(|layer| of(layer) as u64).sum()
    }

    /// The same matrices elsewhere, in another type.
    pub fn to(&self, device: &Device, dtype: DType) -> Result<Self, LoraError> {
        let mut layers = BTreeMap::new();
        for (&site, layer) in &self.layers {
            let to = |tensor: &Tensor| tensor.to_device(device)?.to_dtype(dtype)?.contiguous();
            let lora = LoraAdapter { a: to(&layer.lora.a)?, b: to(&layer.lora.b)?, scale: layer.lora.scale };
            let magnitude = layer.magnitude.as_ref().map(to).transpose()?;
            layers.insert(site, AdapterLayer { lora, magnitude });
        }
        Ok(Self { config: self.config.clone(), layers })
    }

    /// Whether every matrix has its place in the model, with the right shape; names all that have not.
    pub fn check(&self, spec: &DecoderSpec) -> Result<(), LoraError> {
        let places: BTreeMap<Site, _> = spec.sites().into_iter().map(|place| (place.site, place)).collect();
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
            for (name, found, expected) in factors.into_iter().chain(magnitude) {
                if found.dims() != expected {
                    misfits.push(format!("{site}: {name} is {:?}, expected {expected:?}", found.dims()));
                }
            }
            if (self.config.method == Method::Dora) != layer.magnitude.is_some() {
                misfits.push(format!("{site}: magnitudes belong to DoRA, and to all of its modules"));
            }
        }
        if misfits.is_empty() { Ok(()) } else { Err(LoraError::Misfit(misfits)) }
    }
}
