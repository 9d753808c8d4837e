//! A model with its tokenizer, chat template and generation defaults: what a folder from the hub holds.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Device};

use serde_json::Value;

use crate::{
    Result,
    generate::{GenerateError, Prompt, sampler::SamplingParams},
    model::{Config, LoadOptions, Model, ModelError, arch, weights::Weights},
    text::{ChatTemplate, TextError, Tokenizer},
};

/// Everything needed to turn text into text. Immutable: share it with `Arc`.
#[derive(Debug, Clone)]
pub struct LanguageModel {
    folder: PathBuf,
    model: Arc<Model>,
    tokenizer: Arc<Tokenizer>,
    chat_template: Option<Arc<ChatTemplate>>,
    sampling: SamplingParams,
    end_of_sequence: Vec<u32>,
}

impl LanguageModel {
    /// Loads a folder: `config.json`, safetensors, `tokenizer.json`, and where they exist
    /// `tokenizer_config.json`, a chat template and `generation_config.json`.
    ///
    /// `progress` is told bytes of weights done and bytes in all.
    pub fn load(folder: &Path, options: &LoadOptions, progress: &mut dyn FnMut(u64, u64)) -> Result<Self> {
        // Small files first: a mistake in one of them shows before gigabytes are read.
        Self::around(folder, || Ok(Model::load(folder, options, progress)?))
    }

    /// A model that has yet to learn everything: the shape that the folder's `config.json` describes, with random weights,
    /// and the text parts of the folder.
    pub fn untrained(
        folder: &Path,
        dtype: DType,
        device: &Device,
        seed: u64,
        ignore_config_keys: &[String],
    ) -> Result<Self> {
        Self::around(folder, || {
            let config = Config::load(folder).map_err(ModelError::from)?;
            let spec = arch::read(&config, ignore_config_keys).map_err(ModelError::from)?;
            let weights = Weights::initial(&spec, dtype, device, seed).map_err(ModelError::from)?;
            Ok(Model::new(spec, weights, device)?)
        })
    }

    /// The same texts with another decoder, such as one that is being trained.
    #[must_use]
    pub fn with_model(&self, model: Arc<Model>) -> Self {
        Self { model, ..self.clone() }
    }

    /// The text parts of a folder, and a decoder that is made after them.
    fn around(folder: &Path, model: impl FnOnce() -> Result<Model>) -> Result<Self> {
        let _loading = crate::trace::host_span("load_model");
        let tokenizer = Arc::new(Tokenizer::load(folder)?);
        let chat_template = match ChatTemplate::load(folder) {
            Err(TextError::NoChatTemplate { .. }) => None,
            found => Some(Arc::new(found?)),
        };
        let generation = read_json(&folder.join("generation_config.json"))?.unwrap_or_default();
        let sampling = SamplingParams::from_generation_config(&generation).map_err(GenerateError::from)?;
        let model = Arc::new(model()?);
        let config = read_json(&folder.join("config.json"))?.unwrap_or_default();
        let listed = ids(&generation["eos_token_id"]).or_else(|| ids(&config["eos_token_id"]));
        let end_of_sequence =
            listed.unwrap_or_else(|| tokenizer.named_token_id("eos_token").into_iter().collect());
        let folder = folder.to_owned();
        Ok(Self { folder, model, tokenizer, chat_template, sampling, end_of_sequence })
    }

    /// The folder that it came from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The decoder.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// The chat template, if the model has one.
    pub fn chat_template(&self) -> Option<&Arc<ChatTemplate>> {
        self.chat_template.as_ref()
    }

    /// Sampling as the model's authors advise it in `generation_config.json`.
    pub fn sampling(&self) -> &SamplingParams {
        &self.sampling
    }

    /// Tokens that end a sequence.
    pub fn end_of_sequence(&self) -> &[u32] {
        &self.end_of_sequence
    }

    /// The tokens of a prompt.
    pub fn prompt_tokens(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        Ok(match prompt {
            Prompt::Text(text) if text.is_empty() => return Err(GenerateError::EmptyPrompt.into()),
            Prompt::Text(text) => self.tokenizer.encode(text, true)?,
            Prompt::Rendered(text) => self.tokenizer.encode(text, false)?,
            Prompt::Tokens(tokens) => tokens.clone(),
        })
    }
}

/// A JSON file that may be absent.
fn read_json(path: &Path) -> Result<Option<Value>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(GenerateError::Config {
                path: path.display().to_string(),
                reason: error.to_string(),
            }
            .into());
        }
    };
    let parsed = serde_json::from_slice(&bytes);
    let value = parsed.map_err(|error| GenerateError::Config {
        path: path.display().to_string(),
        reason: error.to_string(),
    })?;
    Ok(Some(value))
}

/// One id or a list of ids.
fn ids(value: &Value) -> Option<Vec<u32>> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(items) => items.iter().map(id).collect(),
        single => id(single).map(|id| vec![id]),
    }
}
