//! Adapters of Qwen2.5-0.5B (q and v of all layers): read from a folder, and put in place of another.

use std::collections::BTreeMap;

use anyhow::Result;
use candle_core::DType;
use metal_candle::lora::{
    ActiveAdapter, Adapter, AdapterLayer, Format, LoraConfig, SaveOptions, Scaling, StoredAdapter,
};
use metal_candle_kernels::lora::LoraAdapter;

use crate::{Bench, Call, Row, Work, qwen};

const RANKS: [usize; 5] = [4, 8, 16, 32, 64];

/// From a folder in PEFT's format (f32) to matrices that were checked.
pub(super) fn load_rows() -> Vec<Row> {
    let row = |rank| {
        let row = Row::new(format!("adapter_load/rank/{rank}"), Work::bytes(2 * bytes(rank)), move |bench| {
            let (folder, spec) = (tempfile::tempdir()?, qwen::spec()?);
            adapter(bench, rank)?.save(folder.path(), Format::Peft, &SaveOptions::default())?;
            Ok(Call::new(move || StoredAdapter::load(folder.path(), Some(&spec))))
        });
        row.without_instructions()
    };
    RANKS.map(row).into()
}

/// From matrices in memory to an adapter that the next forward pass uses. The base model is left alone.
pub(super) fn switch_rows() -> Vec<Row> {
    let row = |rank| {
        let row = Row::new(format!("adapter_switch/rank/{rank}"), Work::none(), move |bench| {
            let (model, adapter) = (bench.qwen()?, adapter(bench, rank)?);
            Ok(Call::new(move || ActiveAdapter::new(&adapter, &model)))
        });
        row.without_instructions()
    };
    RANKS.map(row).into()
}

/// On the host, as it would be read from a file.
fn adapter(bench: &Bench, rank: usize) -> Result<Adapter> {
    let config = LoraConfig { rank, scaling: Scaling::Alpha(2. * rank as f32), ..LoraConfig::default() };
    let mut layers = BTreeMap::new();
    for place in config.sites(&qwen::spec()?)? {
        let random = |shape: (usize, usize)| bench.random(shape);
        let (a, b) = (random((rank, place.inputs))?, random((place.outputs, rank))?);
        let lora = LoraAdapter { a, b, scale: config.scale_at(place.site) };
        layers.insert(place.site, AdapterLayer { lora, magnitude: None, minus: None });
    }
    Ok(Adapter { config, layers }.to(&candle_core::Device::Cpu, DType::F32)?)
}

fn bytes(rank: usize) -> usize {
    let (queries, keys) = (qwen::HEADS * qwen::HEAD_DIM, qwen::KV_HEADS * qwen::HEAD_DIM);
    4 * qwen::LAYERS * rank * (qwen::HIDDEN + queries + qwen::HIDDEN + keys)
}
