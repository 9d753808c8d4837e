//! What a finished run leaves in its output folder: an adapter, or a model.

use std::{fs, path::Path};

use candle_core::{DType, Tensor};

use crate::{
    LanguageModel, Result, durable,
    lora::{Format, SaveOptions, copy_others},
    model::weights,
    train::{TrainConfig, TrainError, Trainer, Training},
};

const WEIGHTS: &str = "model.safetensors";

/// Whether the result can be written when the time comes.
pub(super) fn check(config: &TrainConfig) -> Result<()> {
    if config.method == Training::Adapter {
        Format::from(config.format).check_replaceable(&config.output)?;
    }
    fs::create_dir_all(&config.output).map_err(|error| TrainError::io("create", &config.output, error).into())
}

/// Writes the result as it is now into a folder.
pub(super) fn write(
    language_model: &LanguageModel,
    dtype: DType,
    config: &TrainConfig,
    trainer: &Trainer,
    folder: &Path,
) -> Result<()> {
    if let Some(adapter) = trainer.adapter()? {
        let options = SaveOptions {
            base_model: Some(&config.model).filter(|name| !name.is_empty()).map(String::as_str),
            layer_count: Some(language_model.model().spec().layers.len()),
        };
        return Ok(adapter.save(folder, config.format.into(), &options)?);
    }
    write_model(language_model.folder(), dtype, folder, trainer)
}

/// The weights in the type that they came in, beside the other files of the model that they came from.
fn write_model(from: &Path, dtype: DType, output: &Path, trainer: &Trainer) -> Result<()> {
    copy_others(from, output, Some(dtype))?;
    let tensors: Vec<(String, Tensor)> = trainer
        .parameters()
        .state()?
        .into_iter()
        .map(|parameter| Ok((parameter.name, parameter.state.get(0)?.to_dtype(dtype)?)))
        .collect::<Result<_>>()?;
    let path = output.join(WEIGHTS);
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let written = durable::write_file(&path, |file| weights::write_tensors(file, &tensors, &metadata));
    Ok(written.map_err(|error| TrainError::io("write", &path, error))?)
}
