//! Training.

pub mod events;
pub mod report;
