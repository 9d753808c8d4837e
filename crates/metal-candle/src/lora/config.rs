//! What an adapter is to be: where, how large, how scaled, how it begins.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{LoraError, Module, Site, SiteShape};
use crate::model::spec::DecoderSpec;

/// Everything that decides an adapter's shape and its first values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// LoRA, or LoRA with magnitudes.
    pub method: Method,
    /// The modules, by the end of their path (`q_proj`, `self_attn.q_proj`), or `all-linear`.
    pub targets: Vec<String>,
    /// r
    pub rank: usize,
    /// How the product is scaled.
    pub scaling: Scaling,
    /// The share of the inputs that training leaves out at random.
    pub dropout: f32,
    /// Only the last so many blocks; all by default.
    pub last_layers: Option<usize>,
    /// Other ranks for the modules whose path ends like this.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Other alphas for the modules whose path ends like this.
    pub alpha_pattern: BTreeMap<String, f32>,
    /// The first values.
    pub initialisation: Initialisation,
}

/// What is trained beside a frozen weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// `W + scale · B · A`
    Lora,
    /// Rows of that sum, normalised, times trained magnitudes.
    Dora,
}

/// What multiplies `B · A`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scaling {
    /// `α / r`
    Alpha(f32),
    /// `α / √r` (rsLoRA).
    RankStabilised(f32),
    /// The number itself, as MLX's `scale`.
    Factor(f32),
}

/// The first values of A and B.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Initialisation {
    /// A uniform in ±1/√K (Kaiming with a = √5), B zero.
    Kaiming,
    /// A normal with deviation 1/r, B zero.
    Gaussian,
    /// The largest singular vectors of the weight, which loses them.
    Pissa,
}

impl Scaling {
    /// The multiplier at this rank.
    pub(crate) fn factor(self, rank: usize) -> f32 {
        // In f64, as Python: the quotient is rounded once.
        match self {
            Self::Alpha(alpha) => (f64::from(alpha) / rank as f64) as f32,
            Self::RankStabilised(alpha) => (f64::from(alpha) / (rank as f64).sqrt()) as f32,
            Self::Factor(factor) => factor,
        }
    }

    /// The same kind with another alpha, if one is given and it has any.
    pub(crate) fn with_alpha(self, other: Option<f32>) -> Self {
        match (self, other) {
            (Self::Alpha(_), Some(alpha)) => Self::Alpha(alpha),
            (Self::RankStabilised(_), Some(alpha)) => Self::RankStabilised(alpha),
            (own, _) => own,
        }
    }
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            method: Method::Lora,
            targets: vec!["q_proj".to_owned(), "v_proj".to_owned()],
            rank: 8,
            scaling: Scaling::Alpha(16.0),
            dropout: 0.0,
            last_layers: None,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            initialisation: Initialisation::Kaiming,
        }
    }
}

impl LoraConfig {
    /// The sites of a model that the targets name. A target that names nothing is an error.
    pub fn sites(&self, spec: &DecoderSpec) -> Result<Vec<SiteShape>, LoraError> {
        let count = spec.layers.len();
        let first = count - self.last_layers.unwrap_or(count).min(count);
        let all = spec.sites();
        for target in &self.targets {
            if !all.iter().any(|place| matches(target, place.site)) {
                let names = Module::ALL
                    .into_iter()
                    .filter(|module| all.iter().any(|place| place.site.module == *module));
                let modules = names.map(|module| module.name().to_owned()).collect();
                return Err(LoraError::UnknownTarget { target: target.clone(), modules });
            }
        }
        let wanted = |place: &SiteShape| {
            place.site.layer >= first && self.targets.iter().any(|target| matches(target, place.site))
        };
        Ok(all.into_iter().filter(wanted).collect())
    }

    /// r at a site.
    pub fn rank_at(&self, site: Site) -> usize {
        pattern(&self.rank_pattern, site).unwrap_or(self.rank)
    }

    /// What multiplies `B · A` at a site.
    pub fn scale_at(&self, site: Site) -> f32 {
        self.scaling_at(site).factor(self.rank_at(site))
    }

    /// The scaling with the alpha of a site.
    pub(crate) fn scaling_at(&self, site: Site) -> Scaling {
        self.scaling.with_alpha(pattern(&self.alpha_pattern, site))
    }

    /// Whether every number is in its range.
    pub fn check(&self) -> Result<(), LoraError> {
        let bad = |name, value: String, expected| Err(LoraError::Setting { name, value, expected });
        let ranks = self.rank_pattern.values().chain([&self.rank]);
        if let Some(rank) = ranks.copied().find(|&rank| rank == 0) {
            return bad("rank", rank.to_string(), "it must be at least 1");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return bad("dropout", self.dropout.to_string(), "it must be at least 0 and below 1");
        }
        if self.targets.is_empty() {
            return bad("targets", "empty".to_owned(), "name modules such as q_proj, or all-linear");
        }
        let scale = match self.scaling {
            Scaling::Alpha(number) | Scaling::RankStabilised(number) | Scaling::Factor(number) => number,
        };
        if !scale.is_finite() || scale == 0.0 {
            return bad("scale", scale.to_string(), "it must be a number other than 0");
        }
        if matches!(self.scaling, Scaling::Factor(_)) && !self.alpha_pattern.is_empty() {
            return bad("alpha_pattern", "given".to_owned(), "it needs an alpha, not a scale");
        }
        if self.initialisation == Initialisation::Pissa && self.method == Method::Dora {
            return bad("initialisation", "pissa".to_owned(), "it goes with LoRA, not with DoRA");
        }
        if self.initialisation == Initialisation::Pissa && scale < 0.0 {
            return bad("scale", scale.to_string(), "it must be positive with PiSSA");
        }
        Ok(())
    }
}

/// Whether a target names a site: `all-linear`, or the end of its path at a dot.
fn matches(target: &str, site: Site) -> bool {
    target == "all-linear" || ends_like(&site.path(), target)
}

fn ends_like(path: &str, end: &str) -> bool {
    path.strip_suffix(end).is_some_and(|start| start.is_empty() || start.ends_with('.'))
}

/// The value of the longest key that ends the site's path.
fn pattern<T: Copy>(patterns: &BTreeMap<String, T>, site: Site) -> Option<T> {
    let path = site.path();
    let found = patterns.iter().filter(|(key, _)| ends_like(&path, key));
    found.max_by_key(|(key, _)| key.len()).map(|(_, value)| *value)
}
