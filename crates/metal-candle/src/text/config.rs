//! `tokenizer_config.json` and its older companions: the names of the special tokens, tokens to add.

use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::{TextError, read_optional_object};

/// The named tokens that every tokenizer may have, in the order in which they are added when missing.
const STANDARD_NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What the files beside `tokenizer.json` say.
#[derive(Debug, Clone, Default)]
pub(super) struct TokenizerConfig {
    /// Named special tokens (`bos_token`, …, and a model's own such as `image_token`), in order.
    pub(super) named: Vec<(String, String)>,
    /// Tokens of the config with all their flags: added unless `tokenizer.json` lists exactly the same.
    pub(super) added: Vec<AddedToken>,
    /// Special tokens known by their text alone: added unless some added token has that text.
    pub(super) special: Vec<String>,
    /// The `chat_template` entry as it is: a string or a list of named templates.
    pub(super) chat_template: Option<Value>,
}

impl TokenizerConfig {
    /// Reads `tokenizer_config.json` of a model folder, with `special_tokens_map.json` and `added_tokens.json` where
    /// the former does not list the added tokens itself. All of them may be absent.
    pub(super) fn load(folder: &Path) -> Result<Self, TextError> {
        let path = folder.join("tokenizer_config.json");
        let mut object = read_optional_object(&path)?.unwrap_or_default();
        let mut added = Vec::new();
        if let Some(decoder) = object.remove("added_tokens_decoder") {
            added = added_tokens_decoder(&decoder)
                .map_err(|reason| TextError::Invalid { path: path.clone(), reason })?;
        } else {
            for (key, value) in
                read_optional_object(&folder.join("special_tokens_map.json"))?.unwrap_or_default()
            {
                object.insert(key, value);
            }
            added.extend(legacy_added_tokens(folder)?);
        }
        let chat_template = object.remove("chat_template").filter(|template| !template.is_null());
        let named = named_tokens(&object);
        for token in &mut added {
            token.special |= named.iter().any(|(_, content)| content == &token.content);
        }
        let mut special: Vec<String> = named.iter().map(|(_, content)| content.clone()).collect();
        special.extend(extra_special_tokens(&object));
        Ok(Self { named, added, special, chat_template })
    }

    /// The content of a named token such as `eos_token`.
    pub(super) fn token(&self, name: &str) -> Option<&str> {
        self.named.iter().find(|(key, _)| key == name).map(|(_, content)| content.as_str())
    }
}

/// A token is written as a string, or as an object with its content.
fn content(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str()).filter(|text| !text.is_empty())
}

fn named_tokens(object: &Map<String, Value>) -> Vec<(String, String)> {
    let standard = STANDARD_NAMES.iter().map(|name| (*name, object.get(*name)));
    let own = object
        .iter()
        .filter(|(key, _)| key.ends_with("_token") && !STANDARD_NAMES.contains(&key.as_str()))
        .map(|(key, value)| (key.as_str(), Some(value)));
    let mut named: Vec<(String, String)> = standard
        .chain(own)
        .filter_map(|(key, value)| Some((key.to_owned(), content(value?)?.to_owned())))
        .collect();
    if let Some(Value::Object(extra)) = object.get("extra_special_tokens") {
        named.extend(extra.iter().filter_map(|(key, value)| Some((key.clone(), content(value)?.to_owned()))));
    }
    named
}

fn extra_special_tokens(object: &Map<String, Value>) -> Vec<String> {
    ["extra_special_tokens", "additional_special_tokens"]
        .iter()
        .filter_map(|key| object.get(*key)?.as_array())
        .find(|list| !list.is_empty())
        .into_iter()
        .flatten()
        .filter_map(|token| content(token).map(str::to_owned))
        .collect()
}

fn added_tokens_decoder(decoder: &Value) -> Result<Vec<AddedToken>, String> {
    let entries = decoder.as_object().ok_or("added_tokens_decoder is not an object of id to token")?;
    let mut tokens = Vec::with_capacity(entries.len());
    for (key, entry) in entries {
        let id: u32 = key.parse().map_err(|_| format!("added_tokens_decoder: {key:?} is not a token id"))?;
        let text = content(entry)
            .ok_or_else(|| format!("added_tokens_decoder: token {id} has no \"content\" string"))?;
        let flag = |name: &str| entry.get(name).and_then(Value::as_bool);
        let special = flag("special").unwrap_or(false);
        let token = AddedToken::from(text, special)
            .single_word(flag("single_word").unwrap_or(false))
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .normalized(flag("normalized").unwrap_or(!special));
        tokens.push((id, token));
    }
    tokens.sort_by_key(|(id, _)| *id);
    Ok(tokens.into_iter().map(|(_, token)| token).collect())
}

/// `added_tokens.json` of old model folders: token to id.
fn legacy_added_tokens(folder: &Path) -> Result<Vec<AddedToken>, TextError> {
    let path = folder.join("added_tokens.json");
    let mut tokens = Vec::new();
    for (text, id) in read_optional_object(&path)?.unwrap_or_default() {
        let id = id.as_u64().ok_or_else(|| TextError::Invalid {
            path: path.clone(),
            reason: format!("the id of token {text:?} is not a whole number"),
        })?;
        tokens.push((id, AddedToken::from(text, false)));
    }
    tokens.sort_by_key(|(id, _)| *id);
    Ok(tokens.into_iter().map(|(_, token)| token).collect())
}
