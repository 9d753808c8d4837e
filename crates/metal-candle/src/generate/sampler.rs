//! From logits to one token.

/// A sampling parameter is out of range.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {}
