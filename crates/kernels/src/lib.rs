//! Fused tensor ops for language models: one folder per op, one safe function per op, on every device.
//!
//! Each folder holds `mod.rs` (the safe function: checks shapes, then picks the implementation for the
//! tensor's device), `reference.rs` (the same arithmetic in plain candle ops: slow, right, any device)
//! and `cpu.rs` (the fast path). Callers never choose a backend.
//!
//! # Dtypes
//! Activations have the *compute dtype*: `f32` on the CPU, the weights' dtype elsewhere. Weights keep the
//! dtype of their file (`f32`, `bf16`, `f16`) and are widened in registers, never copied as a whole.

pub mod accumulate;
pub mod attention;
pub mod cast;
pub mod cross_entropy;
pub mod cuda_libraries;
mod device;
pub mod device_memory;
pub mod dropout;
pub mod embedding;
mod fresh;
pub mod gated;
mod gpu;
mod graph;
pub mod layer_norm;
pub mod linear;
pub mod lora;
mod matmul;
pub mod memory;
pub mod optimizer;
mod output;
mod parts;
pub mod pool;
pub mod rms_norm;
pub mod rope;
pub mod sample;
mod scratch;
pub mod simd;
pub mod softmax;
pub mod trace;
mod view;

#[cfg(test)]
mod testing;

pub use candle_core::{DType, Device, Error, Result, Tensor};
