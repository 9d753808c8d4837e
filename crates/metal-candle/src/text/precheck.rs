//! What must hold in a `tokenizer.json` before the tokenizers crate reads it: that crate takes some sizes on trust.

use serde::Deserialize;
use serde_json::Value;
use tokenizers::utils::SysRegex;

use super::charsmap;

/// The small parts of a `tokenizer.json`; serde skips the rest, and with it the vocabulary.
#[derive(Deserialize)]
struct Outline {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    model: Option<Model>,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
}

/// The merges of a BPE model, read only where a prefix must be cut off them.
#[derive(Deserialize)]
struct Merging {
    model: Merges,
}

#[derive(Deserialize)]
struct Merges {
    #[serde(default)]
    merges: Vec<Merge>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair([String; 2]),
    Spaced(String),
}

/// Refuses files whose parts do not fit together.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    let outline: Outline = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    for part in [&outline.normalizer, &outline.pre_tokenizer, &outline.post_processor, &outline.decoder] {
        check_part(part)?;
    }
    check_normalizer(&outline.normalizer)?;
    match outline.model.and_then(|model| model.continuing_subword_prefix) {
        Some(prefix) if !prefix.is_empty() => check_prefix(bytes, &prefix),
        _ => Ok(()),
    }
}

/// A part is known by its fields, not by its `type`: where that is missing or unknown, the tokenizers crate takes the
/// first kind of part whose fields are there.
fn check_part(part: &Value) -> Result<(), String> {
    match part {
        Value::Object(fields) => {
            let encoded = fields.get("precompiled_charsmap");
            if encoded.is_some() || fields.get("type").and_then(Value::as_str) == Some("Precompiled") {
                let encoded = encoded.and_then(Value::as_str);
                charsmap::check(encoded.ok_or("precompiled_charsmap is not a string")?)?;
            }
            if fields.get("length").and_then(Value::as_u64) == Some(0) {
                return Err("a FixedLength pre-tokenizer of length 0".to_owned());
            }
            if fields.contains_key("single") {
                check_post_processor(part)?;
            }
            fields.values().try_for_each(check_part)
        }
        Value::Array(parts) => parts.iter().try_for_each(check_part),
        _ => Ok(()),
    }
}

/// The tokenizers crate cannot put something where nothing stands.
fn check_normalizer(part: &Value) -> Result<(), String> {
    if part.get("prepend").and_then(Value::as_str) == Some("") {
        return Err("a Prepend normalizer with nothing to prepend".to_owned());
    }
    if let Some(pattern) = part.get("pattern") {
        let kind = |kind: &str| pattern.get(kind).and_then(Value::as_str);
        let finds_empty = match (kind("String"), kind("Regex")) {
            (Some(text), _) => text.is_empty(),
            (_, Some(regex)) => SysRegex::new(regex).is_ok_and(|regex| finds_empty_text(&regex)),
            _ => false,
        };
        if finds_empty {
            return Err("a Replace normalizer whose pattern finds empty text".to_owned());
        }
    }
    let parts = part.get("normalizers").and_then(Value::as_array);
    parts.into_iter().flatten().try_for_each(check_normalizer)
}

/// Tried on texts that end with a letter, a digit, a sign and white space, and on one that has all of ASCII.
fn finds_empty_text(regex: &SysRegex) -> bool {
    let ascii: String = (' '..='~').chain(['\n']).collect();
    let texts = ["a", "É", "日", "0", ".", " ", "\n", &ascii];
    texts.iter().any(|text| regex.find_iter(text).any(|(start, end)| start == end))
}

/// Every special token that a template names must be listed, and one text has no second one.
fn check_post_processor(processor: &Value) -> Result<(), String> {
    let single = processor.get("single").and_then(Value::as_array);
    if single
        .into_iter()
        .flatten()
        .any(|piece| piece.get("Sequence").and_then(|text| text.get("id")) == Some(&Value::from("B")))
    {
        return Err("the post-processor puts a second text where there is one".to_owned());
    }
    for piece in ["single", "pair"].iter().filter_map(|name| processor.get(*name)?.as_array()).flatten() {
        if let Some(id) = piece.get("SpecialToken").and_then(|token| token.get("id")?.as_str())
            && processor.get("special_tokens").and_then(|tokens| tokens.get(id)).is_none()
        {
            return Err(format!("the post-processor uses {id:?}, which its special_tokens do not list"));
        }
    }
    Ok(())
}

/// With a prefix for the inner parts of words, the right side of every merge must start with it.
fn check_prefix(bytes: &[u8], prefix: &str) -> Result<(), String> {
    let Ok(file) = serde_json::from_slice::<Merging>(bytes) else { return Ok(()) };
    for merge in &file.model.merges {
        let right = match merge {
            Merge::Pair([_, right]) => right.as_str(),
            Merge::Spaced(both) => both.split_once(' ').map_or(both.as_str(), |(_, right)| right),
        };
        if !right.starts_with(prefix) {
            return Err(format!("the merge with {right:?} lacks the continuing_subword_prefix {prefix:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn parts_are_found_wherever_they_are() {
        let nested = br#"{"model": {"vocab": {}}, "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Precompiled", "precompiled_charsmap": "/////w=="}]}}"#;
        assert!(check(nested).unwrap_err().contains("announces"));
        assert!(check(b"{}").is_ok());
        assert!(check(b"[").is_err());
    }

    #[test]
    fn parts_that_do_not_fit_are_named() {
        for (file, reason) in [
            (r#"{"normalizer": {"type": "Precompiled", "precompiled_charsmap": [1]}}"#, "not a string"),
            (
                r#"{"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": ""}]}}"#,
                "Prepend",
            ),
            (r#"{"normalizer": {"type": "Replace", "pattern": {"Regex": "l*"}, "content": "x"}}"#, "Replace"),
            (r#"{"normalizer": {"type": "Replace", "pattern": {"Regex": "$"}, "content": "x"}}"#, "Replace"),
            (r#"{"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x"}}"#, "Replace"),
            (
                r#"{"post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "B"}}]}}"#,
                "second text",
            ),
            (r#"{"pre_tokenizer": {"type": "FixedLength", "length": 0}}"#, "length 0"),
            // Parts of no or of an unknown type are read by their fields.
            (r#"{"normalizer": {"prepend": ""}}"#, "Prepend"),
            (r#"{"normalizer": {"type": "?", "pattern": {"Regex": "^"}, "content": "x"}}"#, "Replace"),
            (r#"{"normalizer": {"precompiled_charsmap": "/////w=="}}"#, "announces"),
            (r#"{"pre_tokenizer": {"type": null, "length": 0}}"#, "length 0"),
            (r#"{"post_processor": {"single": [{"Sequence": {"id": "B"}}]}}"#, "second text"),
            (
                r#"{"post_processor": {"type": "TemplateProcessing", "special_tokens": {"<s>": {}},
                    "single": [{"SpecialToken": {"id": "<s>"}}, {"SpecialToken": {"id": "</s>"}}], "pair": []}}"#,
                "</s>",
            ),
            (r#"{"model": {"continuing_subword_prefix": "é", "merges": ["a éb", "a b"]}}"#, "lacks"),
            (r#"{"model": {"continuing_subword_prefix": "é", "merges": [["a", "b"]]}}"#, "lacks"),
        ] {
            let error = check(file.as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        assert!(
            check(r#"{"model": {"continuing_subword_prefix": "é", "merges": ["a éb"]}}"#.as_bytes()).is_ok()
        );
    }
}
