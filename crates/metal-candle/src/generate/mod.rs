//! From a request to tokens: sampler, stop conditions, scheduler, engine.

pub mod sampler;
pub mod stop;

/// A request cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// A sampling parameter is out of range, or the logits are broken.
    #[error(transparent)]
    Sampling(#[from] sampler::SamplingError),
    /// Stop strings cannot be used as given.
    #[error(transparent)]
    Stop(#[from] stop::StopError),
}
