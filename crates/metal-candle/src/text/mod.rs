//! Text in, text out: tokenizer, incremental detokenizer, chat template.

mod charsmap;
mod chat_template;
mod config;
mod decode_stages;
mod detokenizer;
mod jinja;
mod precheck;
mod tokenizer;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

pub use chat_template::{ChatInput, ChatTemplate};
pub use detokenizer::Detokenizer;
pub use jinja::clock::LocalTime;
pub use tokenizer::Tokenizer;

/// Tokenizer or chat template failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A file that must be there cannot be read.
    #[error("cannot read {}: {source}; {hint}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// A file is there, but it does not hold what it should.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// The tokenizer could not turn a text into ids.
    #[error("cannot encode a text of {bytes} bytes: {reason}")]
    Encode {
        /// Length of the text.
        bytes: usize,
        /// What the tokenizer said.
        reason: String,
    },
    /// The tokenizer could not turn ids into a text.
    #[error("cannot decode token ids: {reason}")]
    Decode {
        /// What the tokenizer said.
        reason: String,
    },
    /// The model folder has no chat template.
    #[error(
        "{} has no chat template (looked for chat_template.jinja, chat_template in tokenizer_config.json and \
         chat_template.json); use an instruction-tuned model or a plain prompt",
        folder.display()
    )]
    NoChatTemplate {
        /// The model folder.
        folder: PathBuf,
    },
    /// The chat template is not valid Jinja, or uses something that does not exist.
    #[error("chat template {name}, line {line}: {reason}")]
    TemplateSyntax {
        /// Which template.
        name: String,
        /// Line in the template, from 1; 0 if unknown.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// The chat template failed on this conversation.
    #[error("chat template {name}, line {line}: {reason}")]
    TemplateRender {
        /// Which template.
        name: String,
        /// Line in the template, from 1; 0 if unknown.
        line: usize,
        /// What went wrong.
        reason: String,
    },
    /// The chat template itself refused this conversation, through `raise_exception`.
    #[error("the chat template refuses this conversation: {message}")]
    TemplateRaised {
        /// The template's own words.
        message: String,
    },
    /// The conversation cannot be given to any template.
    #[error("bad chat input: {reason}")]
    ChatInput {
        /// What is wrong, and what to do.
        reason: String,
    },
}

/// Runs a call into a library that may panic on malformed files from outside; `None` if it did.
fn without_panic<T>(call: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(call)).ok()
}

/// Reads a whole file that must exist.
fn read_bytes(path: &Path, hint: &'static str) -> Result<Vec<u8>, TextError> {
    std::fs::read(path).map_err(|source| TextError::Read { path: path.to_owned(), source, hint })
}

/// Reads a file that may be absent.
fn read_optional(path: &Path, hint: &'static str) -> Result<Option<Vec<u8>>, TextError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TextError::Read { path: path.to_owned(), source, hint }),
    }
}

/// Reads a text file that may be absent.
fn read_optional_text(path: &Path, hint: &'static str) -> Result<Option<String>, TextError> {
    let Some(bytes) = read_optional(path, hint)? else { return Ok(None) };
    String::from_utf8(bytes).map(Some).map_err(|error| TextError::Invalid {
        path: path.to_owned(),
        reason: format!("not UTF-8 after byte {}; save it as UTF-8", error.utf8_error().valid_up_to()),
    })
}

/// Reads a JSON object from a file that may be absent.
fn read_optional_object(
    path: &Path,
) -> Result<Option<serde_json::Map<String, serde_json::Value>>, TextError> {
    let Some(bytes) = read_optional(path, "check its permissions")? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| TextError::Invalid {
        path: path.to_owned(),
        reason: format!("not a JSON object: {error}; download the file again"),
    })
}
