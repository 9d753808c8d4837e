//! Decoder models: `config.json` → spec → weights → forward.

pub mod arch;
pub mod config;
mod decoder;
mod layers;
mod named;
pub mod rope;
pub mod spec;
pub(crate) mod walk;
pub mod weights;

pub use config::{Config, ConfigError};
pub(crate) use decoder::is_without_effect;
pub use decoder::{LoadOptions, LogitsFor, Model, SequenceInput};
pub use walk::{BatchLoss, Recompute, Rows};

/// Reading a model's config or weights, or running it, failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// Reading `config.json`.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Opening or checking weight files.
    #[error(transparent)]
    Weights(#[from] weights::WeightsError),
    /// A token that the embedding does not have.
    #[error(
        "token {token} is outside the model's vocabulary of {vocab_size}; tokenizer and model do not belong together"
    )]
    TokenOutOfRange {
        /// The token.
        token: u32,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// A sequence longer than the model was made for.
    #[error(
        "{length} positions exceed the model's context of {limit} (`max_position_embeddings`); shorten the input"
    )]
    ContextExceeded {
        /// Positions asked for.
        length: usize,
        /// `max_position_embeddings`.
        limit: usize,
    },
    /// A forward without any token.
    #[error("there is nothing to run: a sequence of the batch has no tokens")]
    EmptyInput,
    /// A cache cannot be truncated to more than it holds.
    #[error("cannot truncate a cache of {held} positions to {length}")]
    CacheTruncate {
        /// Asked for.
        length: usize,
        /// Held.
        held: usize,
    },
    /// A sliding-window layer no longer has what a query at this position needs.
    #[error(
        "cannot go back to position {length}: a sliding-window layer has dropped the positions before it; start again from 0"
    )]
    CacheWindowLost {
        /// Asked for.
        length: usize,
    },
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}
