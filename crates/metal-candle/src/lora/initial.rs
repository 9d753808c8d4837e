//! The first values of an adapter, which leave the model as it is.
//!
//! The same seed gives the same values on every machine: each site draws from a PCG (`Pcg64Mcg`) of its own, seeded
//! with the seed and the site's path (FNV-1a), so that other targets do not change it.
//!
//! N: outputs, K: inputs, r: rank.

use std::{collections::BTreeMap, f64::consts::TAU};

use candle_core::{DType, Device, Tensor};
use metal_candle_kernels::lora::{LoraAdapter, dora_norm};

use super::{Adapter, AdapterLayer, Initialisation, LoraConfig, LoraError, Method, Site, SiteShape, pissa};
use crate::{
    fingerprint::{self, fingerprint},
    generate::sampler::random::SequenceRandom,
    model::Model,
};

impl Adapter {
    /// An adapter as training starts with it, in f32 on the model's device.
    pub fn initial(config: &LoraConfig, model: &Model, seed: u64) -> Result<Self, LoraError> {
        config.check()?;
        let mut layers = BTreeMap::new();
        for place in config.sites(model.spec())? {
            layers.insert(place.site, first_values(config, model, place, seed)?);
        }
        Ok(Self { config: config.clone(), layers })
    }
}

fn first_values(
    config: &LoraConfig,
    model: &Model,
    place: SiteShape,
    seed: u64,
) -> Result<AdapterLayer, LoraError> {
    let SiteShape { site, outputs, inputs } = place;
    let (rank, scale) = (config.rank_at(site), config.scale_at(site));
    let device = model.device();
    let mut random = SequenceRandom::new(seed ^ fingerprint(fingerprint::START, site.path().as_bytes()));
    if config.initialisation == Initialisation::Pissa {
        if rank > outputs.min(inputs) {
            return Err(LoraError::Setting {
                name: "rank",
                value: format!("{rank} at {site}"),
                expected: "with PiSSA it is at most the smaller side of the weight",
            });
        }
        let weight = weight(model, site)?.to_device(&Device::Cpu)?;
        let (a, b) = pissa::principal_factors(&weight, rank, scale, &mut random)?;
        let lora = LoraAdapter { a: a.to_device(device)?, b: b.to_device(device)?, scale };
        // A copy: the trained matrices may be changed in place.
        let minus = LoraAdapter { a: lora.a.copy()?, b: lora.b.copy()?, scale };
        return Ok(AdapterLayer { lora, magnitude: None, minus: Some(minus) });
    }
    let bound = 1.0 / (inputs as f64).sqrt();
    let deviation = 1.0 / rank as f64;
    let mut draw = || match config.initialisation {
        Initialisation::Gaussian => deviation * normal(&mut random),
        _ => bound * (2.0 * random.uniform() - 1.0),
    };
    let a: Vec<f32> = (0..rank * inputs).map(|_| draw() as f32).collect();
    let lora = LoraAdapter {
        a: Tensor::from_vec(a, (rank, inputs), device)?,
        b: Tensor::zeros((outputs, rank), DType::F32, device)?,
        scale,
    };
    let magnitude = match config.method {
        Method::Lora => None,
        Method::Dora => Some(row_norms(model, site)?),
    };
    Ok(AdapterLayer { lora, magnitude, minus: None })
}

/// The weight of a site as the model's files have it, `[N, K]`.
fn weight(model: &Model, site: Site) -> Result<Tensor, LoraError> {
    let parts = site.module.parts(model.spec(), site.layer);
    let weights: Vec<&Tensor> =
        parts.iter().map(|(part, _)| &model.projection(site.layer, *part).weight).collect();
    Ok(match weights.as_slice() {
        [whole] => (*whole).clone(),
        parts => Tensor::cat(parts, 0)?,
    })
}

/// `‖W‖` by rows, `[N]` in f32.
fn row_norms(model: &Model, site: Site) -> Result<Tensor, LoraError> {
    let mut norms = Vec::new();
    for (part, _) in site.module.parts(model.spec(), site.layer) {
        let weight = &model.projection(site.layer, part).weight;
        let (outputs, inputs) = weight.dims2()?;
        let device = weight.device();
        let nothing = LoraAdapter {
            a: Tensor::zeros((1, inputs), model.compute_dtype(), device)?,
            b: Tensor::zeros((outputs, 1), model.compute_dtype(), device)?,
            scale: 1.0,
        };
        norms.push(dora_norm(weight, &nothing)?);
    }
    Ok(Tensor::cat(&norms, 0)?)
}

/// Box-Muller; the logarithm's argument lies in (0, 1].
pub(super) fn normal(random: &mut SequenceRandom) -> f64 {
    let radius = (-2.0 * (1.0 - random.uniform()).ln()).sqrt();
    radius * (TAU * random.uniform()).cos()
}
