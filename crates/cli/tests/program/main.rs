//! The real program, run as a user runs it, on the golden model and on tiny random ones.
#![allow(clippy::unwrap_used, missing_docs)]

mod adapter;
mod bench;
mod chat;
mod doctor;
mod errors;
mod eval;
mod generate;
mod help;
mod hub;
mod prompt;
mod quickstart;
mod report;
mod support;
mod trace;
mod train;
#[cfg(unix)]
mod train_killed;
#[cfg(unix)]
mod unix;
