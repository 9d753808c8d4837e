//! Test support: golden files, tiny random models, the one tolerance table.

pub mod hub_server;
