//! A model with its tokenizer, chat template and generation defaults: what a folder from the hub holds.

use std::{path::Path, sync::Arc};

use serde_json::Value;

use crate::{
    Result,
    generate::{GenerateError, Prompt, sampler::SamplingParams},
    model::{LoadOptions, Model},
    text::{ChatTemplate, TextError, Tokenizer},
};

/// Everything needed to turn text into text. Immutable: share it with `Arc`.
#[derive(Debug)]
pub struct LanguageModel {
    model: Model,
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
        let tokenizer = Arc::new(Tokenizer::load(folder)?);
        let chat_template = match ChatTemplate::load(folder) {
            Err(TextError::NoChatTemplate { .. }) => None,
            found => Some(Arc::new(found?)),
        };
        let generation = read_json(&folder.join("generation_config.json"))?.unwrap_or_default();
        let sampling = SamplingParams::from_generation_config(&generation).map_err(GenerateError::from)?;
        let model = Model::load(folder, options, progress)?;
        let config = read_json(&folder.join("config.json"))?.unwrap_or_default();
        let listed = ids(&generation["eos_token_id"]).or_else(|| ids(&config["eos_token_id"]));
        let end_of_sequence =
            listed.unwrap_or_else(|| tokenizer.named_token_id("eos_token").into_iter().collect());
        Ok(Self { model, tokenizer, chat_template, sampling, end_of_sequence })
    }

    /// The decoder.
    pub fn model(&self) -> &Model {
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
