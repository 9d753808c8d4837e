//! Reading an adapter folder: whatever its format, its tensors are compared with its config and with the model.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use candle_core::{DType, Device, Tensor};
use metal_candle_kernels::lora::LoraAdapter;

use super::{CONFIG, Format, mlx, most_common, peft, read_config};
use crate::{
    lora::{
        Adapter, AdapterLayer, Initialisation, LoraConfig, LoraError, Method, Module, Scaling, Site,
        SiteShape,
    },
    model::{
        spec::DecoderSpec,
        weights::{Checkpoint, Weights, WeightsError},
    },
};

/// An adapter as it lay in a folder.
#[derive(Debug, Clone)]
pub struct StoredAdapter {
    /// Its matrices, on the CPU in the file's type.
    pub adapter: Adapter,
    /// How it was stored.
    pub format: Format,
    /// The model that it was made for, as the config calls it.
    pub base_model: Option<String>,
    /// The size of the file of matrices.
    pub bytes: u64,
}

/// What a config says, whatever its format.
pub(super) struct Description {
    pub(super) method: Method,
    pub(super) dropout: f32,
    pub(super) base_model: Option<String>,
    /// Whether a site is to have matrices; with the number of blocks, if that is known.
    pub(super) wants: Box<dyn Fn(Site, Option<usize>) -> bool>,
    /// Which blocks the config means.
    pub(super) blocks: Blocks,
    /// Rank and scaling.
    pub(super) at: Box<dyn Fn(Site) -> (usize, Scaling)>,
    /// The site and the kind of a tensor's name.
    pub(super) place: fn(&str) -> Option<(Site, Factor)>,
    /// The name of a site's tensor.
    pub(super) name: fn(Site, Factor) -> String,
    /// Stored transposed.
    pub(super) transposed: bool,
}

/// Which blocks of a model a config means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blocks {
    All,
    Last(usize),
    /// Some, and not necessarily the last.
    Listed,
}

/// A tensor of a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Factor {
    A,
    B,
    Magnitude,
}

impl StoredAdapter {
    /// Reads a folder in either format, and checks that every tensor is there, is meant and is finite.
    ///
    /// With a `model`, its sites and shapes are required; without one, only what the folder itself says.
    pub fn load(folder: &Path, model: Option<&DecoderSpec>) -> Result<Self, LoraError> {
        let format = Format::detect(folder)?;
        let config_path = folder.join(CONFIG);
        let config = read_config(&config_path)?;
        let described = match format {
            Format::Peft => peft::describe(&config),
            Format::Mlx => mlx::describe(&config),
        };
        let described = described.map_err(|problems| LoraError::Unusable { path: config_path, problems })?;
        let path = folder.join(format.weights_file());
        let bytes = std::fs::metadata(&path).map_err(|source| LoraError::io("inspect", &path, source))?.len();
        let mut file = Checkpoint::of_file(&path)?;
        let mut problems = Vec::new();
        let mut found = find(&mut file, &described, &mut problems);
        let sites = sites(&described, model, &found, &mut problems);
        let shapes = model.map(DecoderSpec::shapes).unwrap_or_default();
        let mut whole = Vec::with_capacity(sites.len());
        for &site in &sites {
            let (rank, scaling) = (described.at)(site);
            let expected = ExpectedSite::of(site, rank, &described, shapes.get(&site));
            if let Some(files) = expected.take(&mut found, &mut problems) {
                whole.push((site, scaling.factor(rank), files));
            }
        }
        problems.extend(found.keys().map(|&(site, factor)| {
            format!("{}: {}", (described.name)(site, factor), unexpected(site, factor, &described, model))
        }));
        if sites.is_empty() && problems.is_empty() {
            problems.push("there is not one matrix in it".to_owned());
        }
        let mut weights = load_finite(&file, &mut problems)?;
        if !problems.is_empty() {
            return Err(LoraError::Unusable { path, problems });
        }
        let mut layers = BTreeMap::new();
        for (site, scale, [a, b, magnitude]) in whole {
            let mut natural = |stored: Stored| -> Result<Tensor, LoraError> {
                let tensor = weights.take(&stored.name)?;
                let is_transposed = described.transposed && stored.shape.len() == 2;
                Ok(if is_transposed { tensor.t()?.contiguous()? } else { tensor })
            };
            let (Some(a), Some(b)) = (a, b) else { continue };
            let lora = LoraAdapter { a: natural(a)?, b: natural(b)?, scale };
            let magnitude = magnitude.map(natural).transpose()?;
            layers.insert(site, AdapterLayer { lora, magnitude, minus: None });
        }
        let config = settle(&described, &layers, model);
        let adapter = Adapter { config, layers };
        Ok(Self { adapter, format, base_model: described.base_model, bytes })
    }
}

/// A tensor as the file's header has it.
struct Stored {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
}

type Found = BTreeMap<(Site, Factor), Stored>;

/// All tensors that have a place and are floats; the file forgets the others.
fn find(file: &mut Checkpoint, described: &Description, problems: &mut Vec<String>) -> Found {
    let mut found = Found::new();
    file.keep(|name, info| {
        let Some(place) = (described.place)(name) else {
            problems.push(format!("{name}: no matrix of an adapter that is supported here has such a name"));
            return false;
        };
        let Some(dtype) = info.float_dtype() else {
            problems.push(format!("{name}: its type is {}, expected F32, BF16 or F16", info.dtype));
            return false;
        };
        let stored = Stored { name: name.to_owned(), dtype, shape: info.shape.clone() };
        if found.insert(place, stored).is_some() {
            problems.push(format!("{name}: it is there twice, under two names"));
        }
        true
    });
    found
}

/// The matrices, each in its own type; none of them if some are not finite.
fn load_finite(file: &Checkpoint, problems: &mut Vec<String>) -> Result<Weights, LoraError> {
    match file.load(&Device::Cpu, None, &mut |_, _| ()) {
        Err(WeightsError::BadWeights { tensors, .. }) => {
            problems.extend(tensors.iter().map(|tensor| {
                let total = file.tensors()[&tensor.name].shape.iter().product::<usize>();
                format!("{}: {} of its {total} numbers are NaN or infinite", tensor.name, tensor.count)
            }));
            Ok(Weights::default())
        }
        loaded => Ok(loaded?),
    }
}

/// The sites that must have matrices.
fn sites(
    described: &Description,
    model: Option<&DecoderSpec>,
    found: &Found,
    problems: &mut Vec<String>,
) -> BTreeSet<Site> {
    let Some(spec) = model else {
        let sites = found.keys().map(|(site, _)| *site);
        return sites.filter(|&site| (described.wants)(site, None)).collect();
    };
    let count = spec.layers.len();
    let all = spec.sites().into_iter().map(|place| place.site);
    let sites: BTreeSet<Site> = all.filter(|&site| (described.wants)(site, Some(count))).collect();
    if sites.is_empty() {
        problems.push("the config's targets name no module of the model".to_owned());
    }
    sites
}

fn unexpected(site: Site, factor: Factor, described: &Description, model: Option<&DecoderSpec>) -> String {
    let is_there = model.is_none_or(|spec| spec.sites().iter().any(|place| place.site == site));
    if !is_there {
        "the model has no such module".to_owned()
    } else if !(described.wants)(site, model.map(|spec| spec.layers.len())) {
        format!("{CONFIG} does not name this module or layer")
    } else if factor == Factor::Magnitude {
        "magnitudes belong to DoRA, and the config says LoRA".to_owned()
    } else {
        "not expected".to_owned()
    }
}

/// The shapes that a site's tensors must have, as stored; `None` for a size that only the model knows.
struct ExpectedSite<'a> {
    site: Site,
    described: &'a Description,
    rank: usize,
    outputs: Option<usize>,
    inputs: Option<usize>,
}

impl<'a> ExpectedSite<'a> {
    fn of(site: Site, rank: usize, described: &'a Description, shape: Option<&SiteShape>) -> Self {
        let (outputs, inputs) = (shape.map(|shape| shape.outputs), shape.map(|shape| shape.inputs));
        Self { site, described, rank, outputs, inputs }
    }

    /// A, B and magnitudes as an adapter has them, removed from `found`; `None` where something is wrong.
    fn take(mut self, found: &mut Found, problems: &mut Vec<String>) -> Option<[Option<Stored>; 3]> {
        let before = problems.len();
        let mut taken = [None, None, None];
        let kinds = [Factor::A, Factor::B, Factor::Magnitude];
        let kinds = &kinds[..if self.described.method == Method::Dora { 3 } else { 2 }];
        for (to, &factor) in taken.iter_mut().zip(kinds) {
            let name = (self.described.name)(self.site, factor);
            let Some(stored) = found.remove(&(self.site, factor)) else {
                problems.push(format!("{name}: it is missing"));
                continue;
            };
            let mut expected = match factor {
                Factor::A => vec![Some(self.rank), self.inputs],
                Factor::B => vec![self.outputs, Some(self.rank)],
                Factor::Magnitude => vec![self.outputs],
            };
            if self.described.transposed {
                expected.reverse();
            }
            if !fits(&stored.shape, &expected) {
                problems.push(format!(
                    "{name}: it is {:?}, expected {}",
                    stored.shape,
                    shape_text(&expected)
                ));
                continue;
            }
            if factor == Factor::B {
                // Without a model, B says how long the magnitudes are.
                let outputs =
                    if self.described.transposed { stored.shape.last() } else { stored.shape.first() };
                self.outputs = outputs.copied();
            }
            *to = Some(stored);
        }
        if let [Some(a), Some(b), _] = &taken
            && a.dtype != b.dtype
        {
            let name = (self.described.name)(self.site, Factor::B);
            problems
                .push(format!("{name}: its type is {:?}, that of the other matrix {:?}", b.dtype, a.dtype));
        }
        (problems.len() == before).then_some(taken)
    }
}

fn fits(found: &[usize], expected: &[Option<usize>]) -> bool {
    found.len() == expected.len()
        && found.iter().zip(expected).all(|(found, expected)| expected.is_none_or(|size| size == *found))
}

fn shape_text(shape: &[Option<usize>]) -> String {
    let sizes: Vec<String> =
        shape.iter().map(|size| size.map_or("any".to_owned(), |size| size.to_string())).collect();
    format!("[{}]", sizes.join(", "))
}

/// A config of ours that says the same.
fn settle(
    described: &Description,
    layers: &BTreeMap<Site, AdapterLayer>,
    model: Option<&DecoderSpec>,
) -> LoraConfig {
    let at: BTreeMap<Site, (usize, Scaling)> =
        layers.keys().map(|&site| (site, (described.at)(site))).collect();
    let rank = most_common(at.values().map(|(rank, _)| *rank)).unwrap_or(1);
    let scaling = most_common(at.values().map(|(_, scaling)| *scaling)).unwrap_or(Scaling::Factor(1.0));
    let (targets, last_layers) = targets(layers, described.blocks, model.map(|spec| spec.layers.len()));
    LoraConfig {
        method: described.method,
        targets,
        rank,
        scaling,
        dropout: described.dropout,
        last_layers,
        rank_pattern: pattern(&at, |(own, _)| (own != rank).then_some(own)),
        alpha_pattern: pattern(&at, |(_, own)| match own {
            Scaling::Alpha(alpha) | Scaling::RankStabilised(alpha) if own != scaling => Some(alpha),
            _ => None,
        }),
        initialisation: Initialisation::Kaiming,
    }
}

/// Names for exactly these sites, and how many of the last blocks they are in if not in all.
fn targets(
    layers: &BTreeMap<Site, AdapterLayer>,
    meant: Blocks,
    count: Option<usize>,
) -> (Vec<String>, Option<usize>) {
    let modules: BTreeSet<Module> = layers.keys().map(|site| site.module).collect();
    let blocks: BTreeSet<usize> = layers.keys().map(|site| site.layer).collect();
    let (first, end) = (blocks.first().copied().unwrap_or(0), blocks.last().map_or(0, |last| last + 1));
    let is_grid = layers.len() == modules.len() * blocks.len() && end - first == blocks.len();
    // Without a model, only the config can say that a block is the last.
    let reaches_end = count.map_or(meant != Blocks::Listed, |count| count == end);
    if !is_grid || !reaches_end || (count.is_none() && meant == Blocks::All && first > 0) {
        return (layers.keys().map(|site| site.path()).collect(), None);
    }
    let names = modules.into_iter().map(|module| module.name().to_owned()).collect();
    (names, (first > 0).then_some(blocks.len()))
}

/// What differs, by module where all of a module's sites agree, else by path.
pub(super) fn pattern<S: Copy, T: Copy + PartialEq>(
    at: &BTreeMap<Site, S>,
    differs: impl Fn(S) -> Option<T>,
) -> BTreeMap<String, T> {
    let mut pattern = BTreeMap::new();
    for module in Module::ALL {
        let own: Vec<(Site, Option<T>)> = at
            .iter()
            .filter(|(site, _)| site.module == module)
            .map(|(&site, &value)| (site, differs(value)))
            .collect();
        match own.first() {
            Some((_, Some(first))) if own.iter().all(|(_, value)| *value == Some(*first)) => {
                pattern.insert(module.name().to_owned(), *first);
            }
            _ => pattern.extend(own.into_iter().filter_map(|(site, value)| Some((site.path(), value?)))),
        }
    }
    pattern
}
