//! Adapters outside of training: what they compute, how they are stored, and models that they are merged into.
#![allow(clippy::unwrap_used, missing_docs)]

mod bad_files;
mod equivalences;
mod files;
mod golden;
mod initial;
mod merge;
mod support;
