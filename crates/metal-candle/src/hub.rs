//! Where model files come from: a folder, or the Hugging Face hub through its cache.

/// Finding or downloading model files failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {}
