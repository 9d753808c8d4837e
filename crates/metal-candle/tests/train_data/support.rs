//! Encoders of the golden tokenizers and templates, files of lines, examples as text.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use metal_candle::{
    data::{Encoder, EncoderOptions, Example, Supervise},
    text::{ChatTemplate, Tokenizer},
    train::data::{BadLinePolicy, DataFile},
};
use serde_json::Value;

pub(crate) fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(path)
}

pub(crate) fn tokenizer(folder: &str) -> Arc<Tokenizer> {
    Arc::new(Tokenizer::load(&golden(folder)).unwrap())
}

/// With the tokenizer of tiny-chat and this template.
pub(crate) fn encoder_with(template: ChatTemplate, options: EncoderOptions) -> Encoder {
    let tokenizer = tokenizer("models/tiny-chat");
    let end = tokenizer.named_token_id("eos_token");
    assert!(end.is_some());
    Encoder::new(tokenizer, Some(Arc::new(template)), end, options)
}

pub(crate) fn tiny_chat(supervise: Supervise) -> Encoder {
    let template = ChatTemplate::load(&golden("models/tiny-chat")).unwrap();
    encoder_with(template, EncoderOptions { supervise, ..EncoderOptions::default() })
}

/// Neighbouring tokens that count, or do not, as text: with special tokens, and with all of the example's tokens.
pub(crate) fn parts(example: &Example, tokenizer: &Tokenizer) -> Vec<(bool, String)> {
    assert_eq!(example.tokens.len(), example.counted.len());
    let tokens: Vec<(bool, u32)> =
        example.counted.iter().copied().zip(example.tokens.iter().copied()).collect();
    let runs = tokens.chunk_by(|left, right| left.0 == right.0);
    runs.map(|run| {
        let ids: Vec<u32> = run.iter().map(|(_, id)| *id).collect();
        (run[0].0, tokenizer.decode(&ids, false).unwrap())
    })
    .collect()
}

/// What counts, as text.
pub(crate) fn counted(example: &Example, tokenizer: &Tokenizer) -> Vec<String> {
    parts(example, tokenizer).into_iter().filter(|(counts, _)| *counts).map(|(_, text)| text).collect()
}

pub(crate) fn jsonl(lines: impl IntoIterator<Item = Value>) -> String {
    lines.into_iter().map(|line| format!("{line}\n")).collect()
}

/// A file in a folder of its own, which lives as long as it.
pub(crate) struct DataFolder {
    folder: tempfile::TempDir,
}

impl DataFolder {
    pub(crate) fn new(content: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("train.jsonl"), content).unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("train.jsonl")
    }

    pub(crate) fn open(&self, policy: BadLinePolicy) -> Arc<DataFile> {
        open(&self.path(), policy)
    }
}

fn open(path: &Path, policy: BadLinePolicy) -> Arc<DataFile> {
    Arc::new(DataFile::open(path, policy, &mut |_, _| ()).unwrap())
}
