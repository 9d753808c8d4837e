//! `tokenizer.json` with what `tokenizer_config.json` adds to it.
//!
//! As in transformers 5, the post-processor of `tokenizer.json` alone decides which special tokens an encoding gets:
//! `add_bos_token` and `add_eos_token` of the config are ignored, and so are truncation and padding. Decoding is what
//! the tokenizer's own decoder gives; `clean_up_tokenization_spaces` is not applied.

use std::path::Path;

use tokenizers::{AddedToken, Decoder, DecoderWrapper};

use super::{TextError, config::TokenizerConfig, precheck, read_bytes, without_panic};

/// Turns text into token ids and back. Immutable; share it through an `Arc`.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    config: TokenizerConfig,
    vocab_size: usize,
}

impl Tokenizer {
    /// Loads `tokenizer.json` and, where present, `tokenizer_config.json` of a model folder.
    pub fn load(folder: &Path) -> Result<Self, TextError> {
        let path = folder.join("tokenizer.json");
        let bytes = read_bytes(
            &path,
            "a model folder needs a tokenizer.json; models that only ship tokenizer.model must be converted first",
        )?;
        let config = TokenizerConfig::load(folder)?;
        Self::build(&bytes, config).map_err(|reason| TextError::Invalid { path, reason })
    }

    /// Loads one `tokenizer.json`, without looking at the files beside it.
    pub fn from_file(path: &Path) -> Result<Self, TextError> {
        let bytes = read_bytes(path, "give the path of a tokenizer.json")?;
        Self::build(&bytes, TokenizerConfig::default())
            .map_err(|reason| TextError::Invalid { path: path.to_owned(), reason })
    }

    /// Reads the bytes of a `tokenizer.json`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TextError> {
        Self::build(bytes, TokenizerConfig::default())
            .map_err(|reason| TextError::Invalid { path: "tokenizer.json".into(), reason })
    }

    /// The ids of a text. With `add_special_tokens` the tokenizer adds what its post-processor says (such as a BOS);
    /// special tokens that are spelled out in the text are recognised either way.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        guarded(|| self.inner.encode_fast(text, add_special_tokens))
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|reason| TextError::Encode { bytes: text.len(), reason })
    }

    /// The ids of a text, and for each of them the bytes of the text that it stands for (an empty range for tokens
    /// that were added).
    pub fn encode_with_offsets(
        &self,
        text: &str,
        add_special_tokens: bool,
    ) -> Result<Vec<(u32, std::ops::Range<usize>)>, TextError> {
        let encoding = guarded(|| self.inner.encode(text, add_special_tokens))
            .map_err(|reason| TextError::Encode { bytes: text.len(), reason })?;
        let offsets = encoding.get_offsets().iter().map(|(start, end)| *start..*end);
        Ok(encoding.get_ids().iter().copied().zip(offsets).collect())
    }

    /// The text of some ids. Ids outside the vocabulary stand for nothing.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, TextError> {
        let tokens: Vec<String> = ids.iter().filter_map(|id| self.piece(*id, skip_special_tokens)).collect();
        // Some decoders do not expect an empty list.
        if tokens.is_empty() {
            return Ok(String::new());
        }
        match self.inner.get_decoder() {
            Some(decoder) => {
                guarded(|| decoder.decode(tokens)).map_err(|reason| TextError::Decode { reason })
            }
            None => Ok(tokens.join(" ")),
        }
    }

    /// Number of tokens, added ones included. Ids may have holes: the largest id can be above it.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of a token, as it is spelled in the vocabulary.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id, as it is spelled in the vocabulary (not decoded).
    pub fn token_of(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Is this the id of a special token, one that stands for no text?
    pub fn is_special(&self, id: u32) -> bool {
        self.token_of(id).is_some_and(|token| self.inner.get_added_vocabulary().is_special_token(&token))
    }

    /// The content of a named token of the config: `bos_token`, `eos_token`, `pad_token`, `unk_token`, …
    pub fn named_token(&self, name: &str) -> Option<&str> {
        self.config.token(name)
    }

    /// The id of a named token of the config: `bos_token`, `eos_token`, `pad_token`, `unk_token`, …
    pub fn named_token_id(&self, name: &str) -> Option<u32> {
        self.id_of(self.named_token(name)?)
    }

    /// The token that a decoder sees for an id; `None` where the id stands for nothing.
    pub(super) fn piece(&self, id: u32, skip_special_tokens: bool) -> Option<String> {
        let vocabulary = self.inner.get_added_vocabulary();
        self.token_of(id).filter(|token| !skip_special_tokens || !vocabulary.is_special_token(token))
    }

    /// The decoder, for the incremental detokenizer.
    pub(super) fn decoder(&self) -> Option<&DecoderWrapper> {
        self.inner.get_decoder()
    }

    fn build(bytes: &[u8], config: TokenizerConfig) -> Result<Self, String> {
        let advice = "download the file again, or write it anew with the tokenizers library";
        let mut inner = precheck::check(bytes)
            .and_then(|()| guarded(|| tokenizers::Tokenizer::from_bytes(bytes)))
            .map_err(|reason| format!("not a tokenizer that can be used: {reason}; {advice}"))?;
        guarded(|| inner.with_truncation(None).map(|_| ()))?;
        inner.with_padding(None);
        let tokens: Vec<AddedToken> = missing_tokens(&inner, &config);
        if !tokens.is_empty() {
            guarded(|| inner.add_tokens(tokens))
                .map_err(|reason| format!("cannot add the tokens of tokenizer_config.json: {reason}"))?;
        }
        let vocab_size = inner.get_vocab_size(true);
        Ok(Self { inner, config, vocab_size })
    }
}

/// Tokens of the config that `tokenizer.json` does not list as added, or lists with other flags.
fn missing_tokens(inner: &tokenizers::Tokenizer, config: &TokenizerConfig) -> Vec<AddedToken> {
    let present = inner.get_added_tokens_decoder();
    let mut missing: Vec<AddedToken> =
        config.added.iter().filter(|token| !present.values().any(|other| &other == token)).cloned().collect();
    for text in &config.special {
        if !present.values().chain(&missing).any(|token| &token.content == text) {
            missing.push(AddedToken::from(text.clone(), true));
        }
    }
    missing
}

/// Runs a call into the tokenizers crate. That crate panics on some malformed files; here that is an error.
pub(super) fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match without_panic(call) {
        Some(result) => result.map_err(|error| error.to_string()),
        None => Err("the tokenizer file has parts that do not fit together".to_owned()),
    }
}
