//! Checkpoints: safetensors files of one folder, checked as a whole, then loaded.

/// Opening or checking weight files failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {}
