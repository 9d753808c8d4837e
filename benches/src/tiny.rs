//! The model inside the program, for rows that need text and little time.

use std::{fs, sync::Arc};

use anyhow::Result;
use metal_candle::{LanguageModel, model::LoadOptions};

use crate::Bench;

const FILES: [(&str, &[u8]); 5] = [
    ("config.json", include_bytes!("../../models/tiny/config.json")),
    ("generation_config.json", include_bytes!("../../models/tiny/generation_config.json")),
    ("tokenizer.json", include_bytes!("../../models/tiny/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../models/tiny/tokenizer_config.json")),
    ("model.safetensors", include_bytes!("../../models/tiny/model.safetensors")),
];

/// Loaded on the device of the bench. The files come with the program, which runs where no source tree is.
pub(crate) fn language_model(bench: &Bench) -> Result<Arc<LanguageModel>> {
    let folder = tempfile::tempdir()?;
    for (name, bytes) in FILES {
        fs::write(folder.path().join(name), bytes)?;
    }
    let options = LoadOptions { device: bench.device().clone(), ..LoadOptions::default() };
    Ok(Arc::new(LanguageModel::load(folder.path(), &options, &mut |_, _| ())?))
}
