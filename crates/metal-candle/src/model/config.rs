//! `config.json`, read strictly: every key is used, known to be without effect, or an error.
//!
//! A [`Config`] is a cursor over the JSON object. Architecture files ask it for values; it notes what was
//! asked for and what was wrong, so that [`Config::finish`] can report every problem at once.

use std::{cell::RefCell, collections::BTreeSet, path::Path};

use serde_json::{Map, Value};

/// `config.json` cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}; a model folder needs its config.json")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not a JSON object.
    #[error("config.json is not a JSON object: {0}")]
    Json(String),
    /// Values that are missing, of the wrong type or not supported; all of them.
    #[error("config.json cannot be used:{}", bullets(.0))]
    Problems(Vec<String>),
}

fn bullets(problems: &[String]) -> String {
    problems.iter().map(|problem| format!("\n  - {problem}")).collect()
}

/// The keys and values of a `config.json`, with a record of what was read and what was wrong.
#[derive(Debug)]
pub struct Config {
    values: Map<String, Value>,
    used: RefCell<BTreeSet<String>>,
    problems: RefCell<Vec<String>>,
}

impl Config {
    /// Reads `folder/config.json`.
    pub fn load(folder: &Path) -> Result<Self, ConfigError> {
        let path = folder.join("config.json");
        let bytes = std::fs::read(&path)
            .map_err(|source| ConfigError::Read { path: path.display().to_string(), source })?;
        Self::from_slice(&bytes)
    }

    /// Parses the text of a `config.json`.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, ConfigError> {
        let value: Value =
            serde_json::from_slice(bytes).map_err(|error| ConfigError::Json(error.to_string()))?;
        match value {
            Value::Object(values) => Ok(Self::from_map(values)),
            other => Err(ConfigError::Json(format!("found {}", kind_of(&other)))),
        }
    }

    fn from_map(values: Map<String, Value>) -> Self {
        Self { values, used: RefCell::default(), problems: RefCell::default() }
    }

    /// Whether the key is there (and not null). Counts as a use.
    pub fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// The raw value; `null` means "not given", as in transformers.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.used.borrow_mut().insert(key.to_owned());
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is there with the value `null`, which switches off what has a default.
    pub fn switched_off(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(Value::is_null)
    }

    /// A size that must be there and at least 1.
    pub fn size(&self, key: &str) -> usize {
        self.size_if_given(key).unwrap_or_else(|| {
            if !self.has(key) {
                self.problem(format!("`{key}` is missing"));
            }
            1
        })
    }

    /// A size with the architecture's default.
    pub fn size_or(&self, key: &str, default: usize) -> usize {
        self.size_if_given(key).unwrap_or(default)
    }

    /// A size that may be absent.
    pub fn size_if_given(&self, key: &str) -> Option<usize> {
        let value = self.value(key)?;
        match value.as_u64() {
            // Far beyond any model; keeps products of two sizes inside 64 bits.
            Some(size) if (1..=1 << 31).contains(&size) => Some(size as usize),
            _ => {
                self.problem(format!("`{key}` must be a whole number from 1 to 2147483648, found {value}"));
                None
            }
        }
    }

    /// A finite number with the architecture's default.
    pub fn number_or(&self, key: &str, default: f64) -> f64 {
        self.number_if_given(key).unwrap_or(default)
    }

    /// A finite number that may be absent.
    pub fn number_if_given(&self, key: &str) -> Option<f64> {
        let value = self.value(key)?;
        match value.as_f64() {
            Some(number) if number.is_finite() => Some(number),
            _ => {
                self.problem(format!("`{key}` must be a number, found {value}"));
                None
            }
        }
    }

    /// A positive number with the architecture's default.
    pub fn positive_or(&self, key: &str, default: f64) -> f64 {
        let number = self.number_or(key, default);
        if number <= 0.0 {
            self.problem(format!("`{key}` must be above 0, found {number}"));
            return default;
        }
        number
    }

    /// A list of positive numbers that may be absent.
    pub fn numbers_if_given(&self, key: &str) -> Option<Vec<f64>> {
        let value = self.value(key)?;
        let numbers: Option<Vec<f64>> =
            value.as_array().and_then(|items| items.iter().map(Value::as_f64).collect());
        if numbers.is_none() {
            self.problem(format!("`{key}` must be a list of numbers"));
        }
        numbers
    }

    /// True or false, with the architecture's default.
    pub fn flag_or(&self, key: &str, default: bool) -> bool {
        match self.value(key) {
            None => default,
            Some(Value::Bool(flag)) => *flag,
            Some(other) => {
                self.problem(format!("`{key}` must be true or false, found {other}"));
                default
            }
        }
    }

    /// Text that may be absent.
    pub fn text_if_given(&self, key: &str) -> Option<&str> {
        let value = self.value(key)?;
        if value.as_str().is_none() {
            self.problem(format!("`{key}` must be text, found {value}"));
        }
        value.as_str()
    }

    /// A list of text that may be absent.
    pub fn texts_if_given(&self, key: &str) -> Option<Vec<&str>> {
        let value = self.value(key)?;
        let texts: Option<Vec<&str>> =
            value.as_array().and_then(|items| items.iter().map(Value::as_str).collect());
        if texts.is_none() {
            self.problem(format!("`{key}` must be a list of text, found {value}"));
        }
        texts
    }

    /// A nested object as a reader of its own; hand it back with [`Config::absorb`].
    pub fn object_if_given(&self, key: &str) -> Option<Config> {
        match self.value(key)? {
            Value::Object(values) => Some(Self::from_map(values.clone())),
            other => {
                self.problem(format!("`{key}` must be an object, found {}", kind_of(other)));
                None
            }
        }
    }

    /// Takes over the problems of a nested object, its unread keys among them.
    pub fn absorb(&self, name: &str, nested: &Config) {
        let problems = nested.problems.take();
        let unread = nested.unread(&[]).into_iter().map(|key| format!("`{key}` is not supported"));
        for problem in problems.into_iter().chain(unread) {
            self.problem(format!("in `{name}`: {problem}"));
        }
    }

    /// Records something that is wrong.
    pub fn problem(&self, problem: impl Into<String>) {
        self.problems.borrow_mut().push(problem.into());
    }

    /// Every problem found so far, and every key that nobody asked for, as one error.
    ///
    /// `ignore` names keys that the caller takes responsibility for.
    pub fn finish(&self, ignore: &[String]) -> Result<(), ConfigError> {
        let mut problems = self.problems.take();
        problems.extend(self.unread(ignore).into_iter().map(|key| {
            let value = shortened(&self.values[&key].to_string());
            format!("`{key}: {value}` is not known here; if it has no effect on the model, have it ignored by name")
        }));
        if problems.is_empty() { Ok(()) } else { Err(ConfigError::Problems(problems)) }
    }

    fn unread(&self, ignore: &[String]) -> Vec<String> {
        let used = self.used.borrow();
        let unread = self.values.iter().filter(|(key, value)| {
            let known = used.contains(*key) || WITHOUT_EFFECT.contains(&key.as_str());
            !known && !value.is_null() && !ignore.contains(key)
        });
        unread.map(|(key, _)| key.clone()).collect()
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn shortened(text: &str) -> String {
    let mut characters = text.chars();
    let start: String = characters.by_ref().take(60).collect();
    if characters.next().is_some() { start + "…" } else { start }
}

/// Keys that change nothing in a forward pass: training-time settings, provenance, generation defaults
/// (those are read from `generation_config.json`), and hints for other runtimes.
const WITHOUT_EFFECT: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_commit_hash",
    "_flash_attn_2_enabled",
    "_name_or_path",
    "add_cross_attention",
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "embd_pdrop",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "is_llama_config",
    "keys_to_ignore_at_inference",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "model_type",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "output_scores",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "pruned_heads",
    "remove_invalid_values",
    "repetition_penalty",
    "resid_pdrop",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "transformers.js_config",
    "typical_p",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn reports_every_problem_at_once() {
        let config = Config::from_slice(
            br#"{"hidden_size": "wide", "mystery": 3, "rms_norm_eps": -1, "use_cache": true}"#,
        )
        .unwrap();
        config.size("hidden_size");
        config.size("num_hidden_layers");
        config.positive_or("rms_norm_eps", 1e-6);
        let message = config.finish(&[]).unwrap_err().to_string();
        for part in ["hidden_size", "`num_hidden_layers` is missing", "mystery", "rms_norm_eps"] {
            assert!(message.contains(part), "{part} not in: {message}");
        }
        assert!(!message.contains("use_cache"));
    }

    #[test]
    fn ignores_only_what_is_named() {
        let config = Config::from_slice(br#"{"one": 1, "two": 2}"#).unwrap();
        let message = config.finish(&["one".to_owned()]).unwrap_err().to_string();
        assert!(message.contains("two") && !message.contains("one:"), "{message}");
    }

    #[test]
    fn refuses_what_is_not_an_object() {
        for bytes in [&b"[1]"[..], b"", b"{", b"\xff"] {
            assert!(matches!(Config::from_slice(bytes), Err(ConfigError::Json(_))));
        }
    }
}
