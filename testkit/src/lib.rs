//! Test support: golden files, tiny random models, damaged files, a stand-in hub, Metal kernels on the CPU, the one
//! tolerance table.
//!
//! Everything here panics with a message when something is wrong: it is called by tests only.

pub mod corrupt;
pub mod golden;
pub mod hub_server;
pub mod msl;
pub mod random;
pub mod tiny;
pub mod tolerance;
