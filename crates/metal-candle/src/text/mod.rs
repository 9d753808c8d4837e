//! Text in, text out: tokenizer, incremental detokenizer, chat template.

/// Tokenizer or chat template failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {}
