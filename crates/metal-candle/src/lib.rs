//! Fine-tune, adapt and serve language models on the machine in front of you.

pub mod cache;
pub mod data;
pub mod device;
mod durable;
mod error;
pub mod eval;
mod fingerprint;
pub mod generate;
pub mod hub;
pub mod language_model;
pub mod lora;
pub mod model;
mod random;
pub mod text;
pub mod trace;
pub mod train;

pub use error::{Error, Result};
pub use language_model::LanguageModel;

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
