//! What a caller asks for, and what it gets.

use std::sync::Arc;

use super::{sampler::SamplingParams, sampler::TokenLogprob};
use crate::lora::ActiveAdapter;

/// One generation.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// What to continue.
    pub prompt: Prompt,
    /// How to choose tokens.
    pub sampling: SamplingParams,
    /// At most this many tokens; by default as many as the context holds.
    pub max_tokens: Option<usize>,
    /// Generation ends before the first of these; they are not part of the text.
    pub stop: Vec<String>,
    /// Goes on after an end-of-sequence token.
    pub ignore_eos: bool,
    /// What changes the model for this generation.
    pub adapter: Option<Arc<ActiveAdapter>>,
}

/// What to continue.
#[derive(Debug, Clone)]
pub enum Prompt {
    /// Text; the tokenizer adds its special tokens (a leading BOS, say).
    Text(String),
    /// Text that already holds its special tokens, such as the output of a chat template.
    Rendered(String),
    /// Tokens.
    Tokens(Vec<u32>),
}

impl Default for Prompt {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

/// One generated token: what callbacks, iterators and streams deliver.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamToken {
    /// The token.
    pub id: u32,
    /// Text that became certain with this token: whole characters, possibly none, never part of a stop
    /// string.
    pub text: String,
    /// log p of the token, if asked for.
    pub logprob: Option<f32>,
    /// The most probable tokens, if asked for.
    pub top_logprobs: Vec<TokenLogprob>,
    /// Set on the last token.
    pub finish: Option<FinishReason>,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// An end-of-sequence token.
    EndOfSequence,
    /// One of the request's stop strings.
    StopString,
    /// `max_tokens`, or the model's context, is used up.
    Length,
    /// The caller said stop.
    Cancelled,
}

impl FinishReason {
    /// The word that OpenAI's API uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EndOfSequence | Self::StopString => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A whole generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// The generated text.
    pub text: String,
    /// The generated tokens, a final end-of-sequence token included.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
}
