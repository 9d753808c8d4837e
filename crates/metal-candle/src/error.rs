//! The library's one error type: every module has its own enum, gathered here.

use crate::{
    data::DataError, generate::GenerateError, hub::HubError, lora::LoraError, model::ModelError,
    text::TextError, train::TrainError, train::report::ReportError,
};

/// What can go wrong, by the room it went wrong in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Finding or downloading model files.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// Reading a model's config or weights, or running it.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Tokenizer and chat template.
    #[error(transparent)]
    Text(#[from] TextError),
    /// Making, reading, writing or applying an adapter.
    #[error(transparent)]
    Lora(#[from] LoraError),
    /// Training and evaluation files.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Training.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// Requests and sampling.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// Writing what a training run reports, or reading it.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

/// A result with this library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
