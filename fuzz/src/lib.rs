//! What the fuzz targets share. `crates/metal-candle/tests/mutations.rs` includes the same files, so that
//! the stable toolchain runs the same functions under the same limit.

pub mod allocation;
pub mod exercise;
