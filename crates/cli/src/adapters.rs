//! `--adapter` and `--adapter-scale` of the commands that run a model.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use metal_candle::{
    lora::{ActiveAdapter, Adapter, StoredAdapter},
    model::Model,
};
use serde_json::{Value, json};

use crate::console::Console;

/// What changes the model.
#[derive(Debug, Args)]
#[command(next_help_heading = "Adapters")]
pub(crate) struct AdapterArgs {
    /// Change the model by this adapter: a folder in PEFT's or in MLX's format (repeatable: their changes add up)
    #[arg(long = "adapter", value_name = "FOLDER")]
    folders: Vec<PathBuf>,

    /// How strongly: 0.5 is half of the change. Once for each --adapter, in the same order [default: 1]
    #[arg(long = "adapter-scale", value_name = "FACTOR", requires = "folders", allow_negative_numbers = true, value_parser = parse_factor)]
    factors: Vec<f32>,
}

impl AdapterArgs {
    /// Whether the flags fit together and the folders are there: before a model is loaded for a minute.
    pub(crate) fn check(&self) -> Result<()> {
        let (folders, factors) = (self.folders.len(), self.factors.len());
        if factors != 0 && factors != folders {
            bail!(
                "--adapter is given {folders} times and --adapter-scale {factors} times; give one scale for each adapter, or none"
            );
        }
        for folder in &self.folders {
            metal_candle::lora::Format::detect(folder).context("cannot use the adapter")?;
        }
        Ok(())
    }

    /// All adapters as one, ready for this model; `None` if there are none.
    pub(crate) fn load(&self, model: &Model, console: &Console) -> Result<Option<Arc<ActiveAdapter>>> {
        if self.folders.is_empty() {
            return Ok(None);
        }
        let mut adapters: Vec<(Adapter, f32)> = Vec::new();
        for (folder, factor) in self.folders.iter().zip(self.all_factors()) {
            let loaded = StoredAdapter::load(folder, Some(model.spec()))
                .with_context(|| format!("cannot use the adapter {}", folder.display()))?;
            let count = loaded.adapter.layers.len();
            console.note(format_args!("adapter: {} ({count} modules, scale {factor})", folder.display()));
            adapters.push((loaded.adapter, factor));
        }
        let adapters: Vec<(&Adapter, f32)> =
            adapters.iter().map(|(adapter, factor)| (adapter, *factor)).collect();
        let combined = ActiveAdapter::combine(&adapters, model).context("cannot use the adapters")?;
        Ok(Some(Arc::new(combined)))
    }

    /// For the JSON of a result.
    pub(crate) fn json(&self) -> Value {
        let entries = self.folders.iter().zip(self.all_factors());
        entries
            .map(|(folder, factor)| json!({ "folder": folder.display().to_string(), "scale": factor }))
            .collect()
    }

    fn all_factors(&self) -> impl Iterator<Item = f32> {
        self.factors.iter().copied().chain(std::iter::repeat(1.0))
    }
}

fn parse_factor(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(factor) if factor.is_finite() => Ok(factor),
        _ => Err("it must be a number such as 0.5".to_owned()),
    }
}
