//! From a request to tokens: sampler, stop strings, engine; by callback, iterator or stream.

mod engine;
mod request;
mod run;
pub mod sampler;
pub mod stop;
#[cfg(feature = "stream")]
mod stream;

pub use engine::{Engine, EngineOptions, Event, RequestId};
pub use request::{Completion, FinishReason, Prompt, Request, StreamToken};
pub use run::Generation;
#[cfg(feature = "stream")]
pub use stream::TokenStream;

/// A request cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// Nothing to continue.
    #[error("the prompt is empty; give at least one token of text")]
    EmptyPrompt,
    /// More prompt than context.
    #[error("the prompt has {tokens} tokens, the model's context holds {context}; shorten the prompt")]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// The model's context.
        context: usize,
    },
    /// `max_tokens` of 0.
    #[error("max_tokens is 0; ask for at least one token")]
    NoTokens,
    /// A JSON file beside the model.
    #[error("cannot read {path}: {reason}")]
    Config {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// The thread of a stream died.
    #[error("the generation's thread panicked; see its message above")]
    Panicked,
    /// A sampling parameter is out of range, or the logits cannot be sampled.
    #[error(transparent)]
    Sampling(#[from] sampler::SamplingError),
    /// Stop strings that cannot be used.
    #[error(transparent)]
    Stop(#[from] stop::StopError),
}
