//! Fine-tune, adapt and serve language models on the machine in front of you.

pub mod cache;
pub mod device;
mod error;
pub mod generate;
pub mod hub;
pub mod model;
pub mod text;

pub use error::{Error, Result};
