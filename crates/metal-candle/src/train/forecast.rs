//! How much memory a step takes, and how long a run: known before it starts.
//!
//! The forecast adds up what the walk through the model holds at its highest point: what stays (weights, what is
//! trained), what a batch leaves for the way back, and the largest piece of work on that way.
//!
//! T: rows of a batch; sizes per row are counted in numbers of the type that the model computes in.

use std::time::Duration;

use candle_core::{DType, Device};
use serde::Serialize;

use super::{Recompute, RecomputeChoice};
use crate::{
    device,
    lora::{LoraConfig, Method, SiteShape},
    model::Model,
    model::{
        spec::{DecoderSpec, LayerSpec, NormPlacement, QkNorm},
        walk::Again,
    },
};

/// Code, tokenizer, data and what else a process holds.
const PROCESS_BYTES: u64 = 48 << 20;
/// What a GPU's libraries take once they are in use.
const GPU_LIBRARY_BYTES: u64 = 96 << 20;
/// The most that a GPU holds of the logits at once.
const GPU_LOGIT_BYTES: u64 = 300 << 20;
/// Numbers of the partial sums of the head's gradient on the CPU, and rows that share them.
const CPU_HEAD_SUMS: u64 = 16 << 20;
const CPU_HEAD_ROWS: u64 = 512;

/// What a run does, as far as its memory depends on it.
#[derive(Debug, Clone, Copy)]
pub struct Workload<'a> {
    /// The model.
    pub spec: &'a DecoderSpec,
    /// The type of its weights.
    pub weights: DType,
    /// The type that it computes in.
    pub compute: DType,
    /// On the CPU.
    pub cpu: bool,
    /// The adapter; without one all weights are trained, in f32.
    pub adapter: Option<&'a LoraConfig>,
    /// The rows of the largest batch, T.
    pub rows: u64,
    /// The targets of the largest batch.
    pub targets: u64,
    /// What runs again on the way back.
    pub recompute: Recompute,
}

impl<'a> Workload<'a> {
    /// For a model as it is loaded, and nothing run again.
    pub fn new(model: &'a Model, adapter: Option<&'a LoraConfig>, rows: u64, targets: u64) -> Self {
        Self {
            spec: model.spec(),
            weights: model.dtype(),
            compute: if adapter.is_some() { model.compute_dtype() } else { DType::F32 },
            cpu: model.device().is_cpu(),
            adapter,
            rows,
            targets,
            recompute: Recompute::NONE,
        }
    }
}

impl RecomputeChoice {
    /// The choice for a workload on a device.
    pub fn resolve(self, load: &Workload<'_>, device: &Device) -> Recompute {
        match self {
            Self::None => Recompute::NONE,
            Self::All => Recompute::ALL,
            Self::Blocks(blocks) => Recompute { blocks, mlps: 0 },
            Self::Mlps(mlps) => Recompute { blocks: 0, mlps },
            Self::Within(bytes) => Forecast::fit(load, bytes),
            Self::Auto => match free_memory(device) {
                // The weights are in memory when the free memory is asked for. Others use memory too.
                Some(bytes) => {
                    let weights = load.spec.parameters() * size(load.weights);
                    Forecast::fit(load, bytes + weights - (bytes / 10))
                }
                None => Recompute::NONE,
            },
        }
    }
}

fn free_memory(device: &Device) -> Option<u64> {
    match device::memory(device) {
        Ok(Some(memory)) => Some(memory.free),
        Ok(None) => device::available_bytes(),
        Err(_) => None,
    }
}

/// Bytes at the highest point of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Forecast {
    /// The frozen weights.
    pub weights: u64,
    /// What is trained: values, moments, gradients.
    pub trained: u64,
    /// What the blocks keep for the way back.
    pub activations: u64,
    /// The largest piece of work.
    pub working: u64,
    /// The process itself.
    pub process: u64,
    /// How many numbers are trained.
    pub trained_numbers: u64,
}

impl Forecast {
    /// For this workload. A target that names no module is no error here.
    pub fn new(load: &Workload<'_>) -> Self {
        let spec = load.spec;
        let sites = load.adapter.and_then(|adapter| adapter.sites(spec).ok()).unwrap_or_default();
        let trained_numbers = match load.adapter {
            Some(adapter) => sites.iter().map(|place| adapter_numbers(adapter, place)).sum(),
            None => spec.parameters(),
        };
        let (weights, kept_per_number) = match load.adapter {
            // Values, two moments, the gradient and, on a GPU, the values in its own type.
            Some(_) if load.compute != DType::F32 => (spec.parameters() * size(load.weights), 18),
            Some(_) => (spec.parameters() * size(load.weights), 16),
            None => (0, 16),
        };
        let layers = spec.layers.len();
        let first = if load.adapter.is_some() {
            sites.iter().map(|place| place.site.layer).min().unwrap_or(layers)
        } else {
            0
        };
        let element = size(load.compute);
        let of = |layer: usize| Block::new(load, &sites, layer);
        let again = |layer: usize| load.recompute.of_block(layer - first);
        let kept = (first..layers).map(|layer| of(layer).kept_bytes(again(layer), element));
        let activations = load.rows * kept.sum::<u64>();
        // What runs again is held like everything else meanwhile.
        let block_work = (first..layers).map(|layer| {
            let block = of(layer);
            let more = block.kept_bytes(Again::Nothing, element) - block.kept_bytes(again(layer), element);
            load.rows * (more + block.working * element)
        });
        // The head works while all blocks' activations are held, its hidden states and their gradient with them.
        let head_work = head_bytes(load) + 3 * load.rows * spec.hidden_size as u64 * element;
        // The update works on a copy of the gradient when no activations are held.
        let update_work = (4 * trained_numbers).saturating_sub(activations);
        let working = block_work.max().unwrap_or(0).max(head_work).max(update_work);
        Self {
            weights,
            trained: kept_per_number * trained_numbers,
            activations,
            working,
            process: PROCESS_BYTES + if load.cpu { 0 } else { GPU_LIBRARY_BYTES },
            trained_numbers,
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        let Self { weights, trained, activations, working, process, .. } = self;
        weights + trained + activations + working + process
    }

    /// The least to run again so that the total stays within `budget`; everything if nothing does.
    pub fn fit(load: &Workload<'_>, budget: u64) -> Recompute {
        let within = |recompute| Self::new(&Workload { recompute, ..*load }).total() <= budget;
        let found = Recompute::ladder(load.spec.layers.len()).find(|&recompute| within(recompute));
        found.unwrap_or(Recompute::ALL)
    }
}

/// How long steps take, once some are known.
pub fn time_left(steps_left: u64, steps_measured: u64, measured: Duration) -> Option<Duration> {
    let seconds = measured.as_secs_f64() / steps_measured as f64 * steps_left as f64;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Numbers per row of one block.
struct Block {
    hidden: u64,
    /// Kept for the way back, its input included.
    saved: u64,
    /// The MLP's part of that.
    saved_mlp: u64,
    /// Kept in f32, whatever the model computes in.
    saved_f32: u64,
    /// Made on the way back.
    working: u64,
}

impl Block {
    fn new(load: &Workload<'_>, sites: &[SiteShape], layer: usize) -> Self {
        let spec = load.spec;
        let LayerSpec { attention, mlp, norms } = &spec.layers[layer];
        let hidden = spec.hidden_size as u64;
        let (queries, keys) = (attention.query_size() as u64, attention.key_size() as u64);
        let middle = mlp.intermediate_size as u64;
        // Input, stream between the halves, rotated queries and keys, values, mixed values, gate, up.
        let mut saved_mlp = 2 * middle;
        let mut saved = 2 * hidden + 2 * queries + 2 * keys;
        if attention.qk_norm != QkNorm::None {
            saved += queries + keys;
        }
        if norms != &NormPlacement::Before {
            saved += hidden;
            saved_mlp += hidden;
        }
        let mut adapts_down = false;
        for place in sites.iter().filter(|place| place.site.layer == layer) {
            let Some(adapter) = load.adapter else { continue };
            let parts = place.site.module.parts(spec, layer);
            let outputs = if adapter.method == Method::Dora { place.outputs } else { 0 };
            let numbers = (parts.len() * adapter.rank_at(place.site) + outputs) as u64;
            *if parts.iter().all(|(part, _)| part.is_of_mlp()) { &mut saved_mlp } else { &mut saved } +=
                numbers;
            adapts_down |= place.site.module == crate::lora::Module::Down;
        }
        let full = load.adapter.is_none();
        // The gradients of the middle, and on the CPU of gate and of up, which take the places of those elsewhere, beside
        // that of the stream and two of the block's inputs; where `down` is trained, the middle itself comes once more.
        let gradients = if load.cpu { 3 * middle } else { middle };
        let again = match (adapts_down || full, load.cpu) {
            (false, _) => 0,
            (true, true) => middle / 2,
            (true, false) => middle,
        };
        let mlp_work = gradients + 3 * hidden + again;
        let attention_work = 3 * queries + 2 * keys + 4 * hidden;
        Self {
            hidden,
            saved: saved + saved_mlp,
            saved_mlp,
            saved_f32: attention.heads as u64,
            working: mlp_work.max(attention_work),
        }
    }

    /// Kept for the way back, when so much of it runs again there.
    fn kept_bytes(&self, again: Again, element: u64) -> u64 {
        match again {
            Again::Nothing => self.saved * element + self.saved_f32 * 4,
            Again::Mlp => (self.saved - self.saved_mlp) * element + self.saved_f32 * 4,
            Again::Block => self.hidden * element,
        }
    }
}

fn adapter_numbers(adapter: &LoraConfig, place: &SiteShape) -> u64 {
    let magnitudes = if adapter.method == Method::Dora { place.outputs } else { 0 };
    (adapter.rank_at(place.site) * (place.inputs + place.outputs) + magnitudes) as u64
}

/// The head's loss and gradient.
fn head_bytes(load: &Workload<'_>) -> u64 {
    let (width, vocabulary) = (load.spec.hidden_size as u64, load.spec.vocab_size as u64);
    if load.cpu {
        let sums = load.targets.min(CPU_HEAD_ROWS) * width.next_multiple_of(32);
        let segments = (CPU_HEAD_SUMS / sums.max(1)).clamp(8, 64);
        return 4 * sums * (segments + 2);
    }
    let logits = load.targets * vocabulary * size(load.compute);
    logits.min(GPU_LOGIT_BYTES)
}

fn size(dtype: DType) -> u64 {
    dtype.size_in_bytes() as u64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::model::{Config, arch};

    fn spec() -> DecoderSpec {
        let config = br#"{
            "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
            "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
            "max_position_embeddings": 32768, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "hidden_act": "silu",
            "tie_word_embeddings": true
        }"#;
        arch::read(&Config::from_slice(config).unwrap(), &[]).unwrap()
    }

    fn load<'a>(spec: &'a DecoderSpec, adapter: Option<&'a LoraConfig>, rows: u64) -> Workload<'a> {
        Workload {
            spec,
            weights: DType::BF16,
            compute: DType::F32,
            cpu: true,
            adapter,
            rows,
            targets: rows,
            recompute: Recompute::NONE,
        }
    }

    #[test]
    fn the_parts_are_those_of_the_shape() {
        let (spec, lora) = (spec(), LoraConfig::default());
        let forecast = Forecast::new(&load(&spec, Some(&lora), 512));
        assert_eq!(forecast.trained_numbers, 540_672);
        assert_eq!(forecast.trained, 16 * 540_672);
        assert_eq!(forecast.weights, 2 * 494_032_768);
        // Input, middle, queries, mixed, keys, values, gate, up, two projections, sums of attention.
        let per_row = 2 * 896 + 2 * 896 + 2 * 128 + 2 * 4864 + 16 + 14;
        assert_eq!(forecast.activations, 24 * 512 * 4 * per_row);
        let full = Forecast::new(&load(&spec, None, 512));
        assert_eq!((full.weights, full.trained), (0, 16 * 494_032_768));
    }

    #[test]
    fn every_choice_acts_in_its_direction() {
        let (spec, lora) = (spec(), LoraConfig::default());
        let total = |load: &Workload<'_>| Forecast::new(load).total();
        let base = load(&spec, Some(&lora), 512);
        assert!(total(&load(&spec, Some(&lora), 1024)) > total(&base));
        assert!(total(&Workload { recompute: Recompute::ALL, ..base }) < total(&base) / 3 * 2);
        let steps: Vec<u64> =
            Recompute::ladder(24).map(|recompute| total(&Workload { recompute, ..base })).collect();
        assert!(steps.is_sorted_by(|more, less| more > less));
        assert!(total(&Workload { weights: DType::F32, ..base }) > total(&base));
        let gpu = Workload { compute: DType::BF16, cpu: false, ..base };
        assert!(Forecast::new(&gpu).activations < Forecast::new(&base).activations);
        let late = LoraConfig { last_layers: Some(4), ..lora.clone() };
        assert!(
            Forecast::new(&load(&spec, Some(&late), 512)).activations < Forecast::new(&base).activations / 5
        );
        let dora = LoraConfig { method: Method::Dora, ..lora.clone() };
        assert!(total(&load(&spec, Some(&dora), 512)) > total(&base));
        assert!(total(&load(&spec, None, 512)) > total(&base));
    }

    #[test]
    fn a_budget_is_kept_with_as_little_extra_work_as_possible() {
        let (spec, lora) = (spec(), LoraConfig::default());
        let base = load(&spec, Some(&lora), 512);
        let total = |recompute| Forecast::new(&Workload { recompute, ..base }).total();
        for fitting in [
            Recompute::NONE,
            Recompute { blocks: 0, mlps: 7 },
            Recompute { blocks: 0, mlps: 24 },
            Recompute { blocks: 5, mlps: 19 },
        ] {
            assert_eq!(Forecast::fit(&base, total(fitting)), fitting);
        }
        assert_eq!(Forecast::fit(&base, 1), Recompute::ALL);
    }

    #[test]
    fn time_is_proportional_to_steps() {
        assert_eq!(time_left(10, 4, Duration::from_secs(2)), Some(Duration::from_secs(5)));
        assert_eq!(time_left(10, 0, Duration::from_secs(2)), None);
    }
}
