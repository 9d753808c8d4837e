//! What things take in memory: the counters of these rows count, `peak_bytes` and `resident_bytes`, more than the time.
//! The latter is of the whole process, which may still hold what another row left: run a row alone.

use std::{collections::HashMap, fs};

use anyhow::Result;
use candle_core::{DType, Device, safetensors};
use metal_candle::{
    generate::sampler::SamplingParams,
    model::{LoadOptions, Model, weights::Weights},
};

use super::{cache, generation::Decoder, training::Training};
use crate::{Call, Row, Work, qwen};

pub(super) fn rows() -> Vec<Row> {
    vec![load(), forward(), training_step(), cache_of_2048()]
}

/// A checkpoint of Qwen2.5-0.5B in bf16, from a file that the system has in memory.
fn load() -> Row {
    let row = Row::new("memory/load", Work::none(), |bench| {
        let (folder, spec) = (tempfile::tempdir()?, qwen::spec()?);
        let mut weights = Weights::random(&spec.tensors(), DType::BF16, &Device::Cpu, 1)?;
        let mut tensors = HashMap::new();
        for (name, _) in spec.tensors() {
            let tensor = weights.take(&name)?;
            tensors.insert(name, tensor);
        }
        safetensors::save(&tensors, folder.path().join("model.safetensors"))?;
        fs::write(folder.path().join("config.json"), qwen::config())?;
        let options = LoadOptions { device: bench.device().clone(), ..LoadOptions::default() };
        Ok(Call::new(move || Model::load(folder.path(), &options, &mut |_, _| ())))
    });
    row.slow()
}

/// 512 tokens, cache included, weights not.
fn forward() -> Row {
    let row = Row::new("memory/forward_512", qwen::forward(1, 512, 0), |bench| {
        let (model, tokens) = (bench.qwen()?, qwen::tokens(512));
        Ok(Call::new(move || Decoder::new(model.clone(), SamplingParams::default())?.forward(&tokens)))
    });
    row.slow()
}

/// That of `lora_training/step`, weights not included.
fn training_step() -> Row {
    let row = Row::new("memory/training_step", qwen::loss_and_gradients(512), |bench| {
        let mut training = Training::new(bench)?;
        Ok(Call::new(move || training.step()))
    });
    row.slow()
}

/// The cache of 2048 tokens: 24 layers, 2 heads of 64 for keys and values, in f32 on the processor and bf16 elsewhere.
fn cache_of_2048() -> Row {
    let row = Row::new("memory/kv_2048", Work::none().yields("tokens", 2048), |bench| {
        let model = cache::cache_model(bench)?;
        Ok(Call::new(move || -> Result<usize> {
            let mut cache = model.new_cache();
            cache::run(&model, &mut cache, &[0; 2048])?;
            Ok(cache.bytes())
        }))
    });
    row.slow()
}
