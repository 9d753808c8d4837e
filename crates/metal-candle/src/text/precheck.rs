//! What must hold in a `tokenizer.json` before the tokenizers crate reads it: that crate takes some sizes on trust.

use serde::Deserialize;
use serde_json::Value;

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
    match outline.model.and_then(|model| model.continuing_subword_prefix) {
        Some(prefix) if !prefix.is_empty() => check_prefix(bytes, &prefix),
        _ => Ok(()),
    }
}

fn check_part(part: &Value) -> Result<(), String> {
    match part {
        Value::Object(fields) => {
            match fields.get("type").and_then(Value::as_str) {
                Some("Precompiled") => check_charsmap(fields.get("precompiled_charsmap"))?,
                Some("FixedLength") if fields.get("length").and_then(Value::as_u64) == Some(0) => {
                    return Err("a FixedLength pre-tokenizer of length 0".to_owned());
                }
                Some("TemplateProcessing") => check_post_processor(part)?,
                _ => {}
            }
            fields.values().try_for_each(check_part)
        }
        Value::Array(parts) => parts.iter().try_for_each(check_part),
        _ => Ok(()),
    }
}

/// Every special token that a template names must be listed.
fn check_post_processor(processor: &Value) -> Result<(), String> {
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

/// A precompiled map starts with the length of its trie, as four bytes behind base64.
fn check_charsmap(encoded: Option<&Value>) -> Result<(), String> {
    let encoded = encoded.and_then(Value::as_str).ok_or("precompiled_charsmap is not a string")?;
    let mut bits = 0u64;
    for byte in encoded.bytes().take(6) {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return Err("precompiled_charsmap is not base64".to_owned()),
        };
        bits = bits << 6 | u64::from(digit);
    }
    // Six digits hold 36 bits: the four bytes of the length, first byte first, and four bits of what follows.
    let length = u32::try_from(bits >> 4).unwrap_or(u32::MAX).swap_bytes();
    let available = encoded.len() / 4 * 3;
    if encoded.len() < 8 || u64::from(length) + 4 > available as u64 {
        return Err("precompiled_charsmap is shorter than the trie it announces".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_charsmap_must_hold_its_trie() {
        // A length of 4 and four bytes; of 10 and two bytes; of 0xffff_ffff.
        let check_charsmap = |encoded: &str| check_charsmap(Some(&Value::from(encoded)));
        assert_eq!(check_charsmap("BAAAAAAAAAA="), Ok(()));
        assert!(check_charsmap("CgAAAAAA").is_err());
        assert!(check_charsmap("/////w==").is_err());
        assert!(check_charsmap("").is_err());
        assert!(check_charsmap("????????").is_err());
    }

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
            (r#"{"pre_tokenizer": {"type": "FixedLength", "length": 0}}"#, "length 0"),
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
