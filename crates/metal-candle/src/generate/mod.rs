//! From a request to tokens: sampler, stop conditions, scheduler, engine.

pub mod sampler;
pub mod stop;

/// A request cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// A sampling parameter is out of range.
    #[error(transparent)]
    Sampling(#[from] sampler::SamplingError),
}
