//! Rotary frequencies: how fast each pair of elements turns, with the scalings that stretch a context.
//!
//! Definitions follow `transformers`' `modeling_rope_utils.py`; tables are f32 as there.

use std::f64::consts::PI;

use super::config::Config;

/// The rotary embedding of a set of layers.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// How many elements of a head turn; the first ones.
    pub rotary_dim: usize,
    /// How the frequencies are stretched.
    pub scaling: RopeScaling,
}

/// A way to stretch the frequencies to longer contexts.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// θ grows with the length of the sequence once it passes `original`.
    DynamicNtk {
        /// Stretch at twice the original length.
        factor: f64,
        /// Length up to which nothing changes.
        original: usize,
    },
    /// Long wavelengths are divided, short ones kept, a ramp between.
    Yarn(Yarn),
    /// Llama 3's piecewise form of the same idea.
    Llama3 {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// Wavelengths above `original / low` are divided.
        low_frequency_factor: f64,
        /// Wavelengths below `original / high` are kept.
        high_frequency_factor: f64,
        /// Context of the pre-training.
        original: usize,
    },
    /// One divisor per frequency: one list up to `original`, another beyond.
    LongRope {
        /// Divisors up to `original`.
        short: Vec<f64>,
        /// Divisors beyond.
        long: Vec<f64>,
        /// Context of the pre-training.
        original: usize,
        /// Multiplies cos and sin.
        attention_factor: f64,
    },
}

/// Parameters of YaRN.
#[derive(Debug, Clone, PartialEq)]
pub struct Yarn {
    factor: f64,
    original: usize,
    beta_fast: f64,
    beta_slow: f64,
    attention_factor: f64,
    truncate: bool,
}

impl RopeSpec {
    /// Multiplies cos and sin.
    pub fn attention_factor(&self) -> f32 {
        match &self.scaling {
            RopeScaling::Yarn(yarn) => yarn.attention_factor as f32,
            RopeScaling::LongRope { attention_factor, .. } => *attention_factor as f32,
            _ => 1.0,
        }
    }

    /// Radians per position of every rotated pair, for a sequence of this length.
    pub fn frequencies(&self, sequence_length: usize) -> Vec<f32> {
        match &self.scaling {
            RopeScaling::None => self.plain(self.theta),
            RopeScaling::Linear { factor } => divided(&self.plain(self.theta), *factor),
            RopeScaling::DynamicNtk { factor, original } => {
                let length = sequence_length.max(*original) as f64;
                let growth = factor * length / *original as f64 - (factor - 1.0);
                let dim = self.rotary_dim as f64;
                self.plain(self.theta * growth.powf(dim / (dim - 2.0)))
            }
            RopeScaling::Yarn(yarn) => self.yarn(yarn),
            RopeScaling::Llama3 { factor, low_frequency_factor, high_frequency_factor, original } => {
                self.llama3(*factor, *low_frequency_factor, *high_frequency_factor, *original as f64)
            }
            RopeScaling::LongRope { short, long, original, .. } => {
                let divisors = if sequence_length > *original { long } else { short };
                let exponents = self.exponents();
                let pairs = exponents.zip(divisors);
                pairs
                    .map(|(exponent, divisor)| (1.0 / (divisor * self.theta.powf(exponent))) as f32)
                    .collect()
            }
        }
    }

    /// The longest sequence, for a config whose `max_position_embeddings` is `max_positions`: linear, dynamic
    /// and YaRN scaling reach beyond the length that the config was pre-trained with.
    pub fn reach(&self, max_positions: usize) -> usize {
        let stretched = match &self.scaling {
            RopeScaling::Linear { factor } => max_positions as f64 * factor,
            RopeScaling::DynamicNtk { factor, original } => *original as f64 * factor,
            RopeScaling::Yarn(yarn) => yarn.original as f64 * yarn.factor,
            _ => 0.0,
        };
        max_positions.max(stretched as usize)
    }

    /// Whether keys turned for a sequence of `cached` positions are wrong for one of `length`: LongRoPE
    /// switches all its frequencies at once, and transformers then computes the sequence anew.
    pub fn outgrown(&self, cached: usize, length: usize) -> bool {
        matches!(&self.scaling, RopeScaling::LongRope { original, .. } if cached <= *original && length > *original)
    }

    /// Whether the frequencies change with the length of the sequence.
    pub fn depends_on_length(&self) -> bool {
        matches!(self.scaling, RopeScaling::DynamicNtk { .. } | RopeScaling::LongRope { .. })
    }

    fn exponents(&self) -> impl Iterator<Item = f64> + use<> {
        let dim = self.rotary_dim;
        (0..dim / 2).map(move |pair| (2 * pair) as f64 / dim as f64)
    }

    fn plain(&self, theta: f64) -> Vec<f32> {
        self.exponents().map(|exponent| (1.0 / theta.powf(exponent)) as f32).collect()
    }

    fn yarn(&self, yarn: &Yarn) -> Vec<f32> {
        let dim = self.rotary_dim as f64;
        // The pair that turns `rotations` times within the original context.
        let pair_of = |rotations: f64| {
            dim * (yarn.original as f64 / (rotations * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (pair_of(yarn.beta_fast), pair_of(yarn.beta_slow));
        if yarn.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        let pairs = self.exponents().enumerate();
        let stretched = pairs.map(|(pair, exponent)| {
            let frequency = 1.0 / self.theta.powf(exponent);
            let ramp = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
            (frequency / yarn.factor * ramp + frequency * (1.0 - ramp)) as f32
        });
        stretched.collect()
    }

    fn llama3(&self, factor: f64, low: f64, high: f64, original: f64) -> Vec<f32> {
        let bend = |exponent: f64| {
            let frequency = 1.0 / self.theta.powf(exponent);
            let wavelength = 2.0 * PI / frequency;
            if wavelength > original / low {
                return frequency / factor;
            }
            if wavelength < original / high {
                return frequency;
            }
            let smooth = (original / wavelength - low) / (high - low);
            (1.0 - smooth) * frequency / factor + smooth * frequency
        };
        self.exponents().map(|exponent| bend(exponent) as f32).collect()
    }
}

fn divided(frequencies: &[f32], factor: f64) -> Vec<f32> {
    frequencies.iter().map(|frequency| frequency / factor as f32).collect()
}

/// Reads the rotary embedding of a config that has one for all layers, in the old layout (`rope_theta`,
/// `rope_scaling`) or the new one (`rope_parameters`).
pub(super) fn read(config: &Config, head_dim: usize, default_theta: f64) -> RopeSpec {
    let old = config.object_if_given("rope_scaling");
    let new = config.object_if_given("rope_parameters");
    let (name, nested) = match (old, new) {
        (Some(old), None) => ("rope_scaling", Some(old)),
        (None, new) => ("rope_parameters", new),
        (Some(old), Some(_)) => {
            config.problem("both `rope_scaling` and `rope_parameters` are given; keep one");
            ("rope_scaling", Some(old))
        }
    };
    let theta = config.positive_or("rope_theta", default_theta);
    let partial = config.positive_or("partial_rotary_factor", 1.0);
    let Some(nested) = nested else {
        return RopeSpec {
            theta,
            rotary_dim: rotary_dim(config, head_dim, partial),
            scaling: RopeScaling::None,
        };
    };
    let spec = read_object(config, &nested, head_dim, theta, partial);
    config.absorb(name, &nested);
    spec
}

/// Reads one `rope_scaling` or `rope_parameters` object; `config` holds the lengths it may refer to.
pub(super) fn read_object(
    config: &Config,
    nested: &Config,
    head_dim: usize,
    default_theta: f64,
    default_partial: f64,
) -> RopeSpec {
    let theta = nested.positive_or("rope_theta", default_theta);
    let partial = nested.positive_or("partial_rotary_factor", default_partial);
    let rotary_dim = rotary_dim(config, head_dim, partial);
    RopeSpec { theta, rotary_dim, scaling: read_scaling(config, nested, rotary_dim) }
}

fn rotary_dim(config: &Config, head_dim: usize, partial: f64) -> usize {
    let rotary_dim = (head_dim as f64 * partial) as usize;
    if rotary_dim < 2 || rotary_dim > head_dim || !rotary_dim.is_multiple_of(2) {
        config.problem(format!(
            "a rotary size of {rotary_dim} (head size {head_dim} × partial_rotary_factor {partial}) must be even \
             and within the head"
        ));
        return 2;
    }
    rotary_dim
}

fn read_scaling(config: &Config, nested: &Config, rotary_dim: usize) -> RopeScaling {
    let old_name = nested.text_if_given("type");
    let kind = nested.text_if_given("rope_type").or(old_name).unwrap_or("default");
    let max_positions = config.size_or("max_position_embeddings", 2048);
    let original = || {
        // A length beside the object (phi3) goes before the one inside, as in transformers.
        let beside = config.size_if_given("original_max_position_embeddings");
        beside.or(nested.size_if_given("original_max_position_embeddings")).unwrap_or(max_positions)
    };
    let factor = || {
        let factor = nested.positive_or("factor", 1.0);
        if !nested.has("factor") {
            nested.problem(format!("`factor` is missing for {kind} scaling"));
        }
        factor
    };
    match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: factor() },
        "dynamic" => {
            nested.size_if_given("original_max_position_embeddings");
            RopeScaling::DynamicNtk { factor: factor(), original: max_positions }
        }
        "yarn" => RopeScaling::Yarn(read_yarn(nested, original(), max_positions)),
        "llama3" => {
            let low_frequency_factor = nested.positive_or("low_freq_factor", 1.0);
            let high_frequency_factor = nested.positive_or("high_freq_factor", 4.0);
            if high_frequency_factor <= low_frequency_factor {
                nested.problem("`high_freq_factor` must be above `low_freq_factor`");
            }
            let factor = factor();
            RopeScaling::Llama3 { factor, low_frequency_factor, high_frequency_factor, original: original() }
        }
        "longrope" | "su" => read_longrope(nested, original(), max_positions, rotary_dim),
        other => {
            nested.problem(format!(
                "rope type `{other}` is not supported (default, linear, dynamic, yarn, llama3, longrope are)"
            ));
            RopeScaling::None
        }
    }
}

fn read_yarn(nested: &Config, original: usize, max_positions: usize) -> Yarn {
    let factor = nested.positive_or("factor", max_positions as f64 / original as f64);
    let mscale = nested.number_or("mscale", 0.0);
    let mscale_all_dim = nested.number_or("mscale_all_dim", 0.0);
    let magnitude = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
    let inferred = if mscale != 0.0 && mscale_all_dim != 0.0 {
        magnitude(mscale) / magnitude(mscale_all_dim)
    } else {
        magnitude(1.0)
    };
    Yarn {
        factor,
        original,
        beta_fast: nested.positive_or("beta_fast", 32.0),
        beta_slow: nested.positive_or("beta_slow", 1.0),
        attention_factor: nested.positive_or("attention_factor", inferred),
        truncate: nested.flag_or("truncate", true),
    }
}

fn read_longrope(nested: &Config, original: usize, max_positions: usize, rotary_dim: usize) -> RopeScaling {
    let list = |key: &str| {
        let divisors = nested.numbers_if_given(key).unwrap_or_default();
        if divisors.len() != rotary_dim / 2 {
            nested.problem(format!("`{key}` needs {} numbers, found {}", rotary_dim / 2, divisors.len()));
        }
        divisors
    };
    let (short, long) = (list("short_factor"), list("long_factor"));
    let factor = nested.positive_or("factor", max_positions as f64 / original as f64);
    let inferred = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
    let attention_factor = nested.positive_or("attention_factor", inferred);
    RopeScaling::LongRope { short, long, original, attention_factor }
}
