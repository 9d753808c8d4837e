//! Decoder models: config → spec → weights → forward.

pub mod weights;

/// Reading a model's config or weights, or running it, failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// Opening or checking weight files.
    #[error(transparent)]
    Weights(#[from] weights::WeightsError),
}
