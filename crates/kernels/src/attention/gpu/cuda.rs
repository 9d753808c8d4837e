//! NVIDIA GPUs: `attention/cuda/attention.cu`, whose arguments.cuh describes what the structs here mean.
//!
//! T: rows of the call, H: query heads, G: key/value heads, D: head size.

pub(super) mod cached;
pub(super) mod packed;

use candle_core::{CudaDevice, Result};

use super::call::Shape;
use crate::{
    attention::AttentionParams,
    gpu::{
        Float,
        cuda::{StructKernel, StructModule, StructName, multiprocessors},
    },
};

static MODULE: StructModule =
    StructModule::new(include_bytes!(concat!(env!("OUT_DIR"), "/attention_cuda.fatbin")));

/// Blocks that most kernels have on a multiprocessor at a time.
const BLOCKS_PER_MULTIPROCESSOR: usize = 2;

/// As in arguments.cuh.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Rows {
    data: u64,
    stride: i64,
}

/// As in arguments.cuh.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Common {
    starts: u64,
    tiles: u64,
    rows: u32,
    heads: u32,
    groups: u32,
    head_dim: u32,
    causal: u32,
    window: u32,
    scale: f32,
    soft_cap: f32,
}

/// As in arguments.cuh.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ForwardArguments {
    common: Common,
    queries: Rows,
    keys: Rows,
    values: Rows,
    key_chunks: u64,
    value_chunks: u64,
    chunk_starts: u64,
    lengths: u64,
    chunk_shift: u32,
    pack: u32,
    splits: u32,
    out: Rows,
    lse: u64,
    partial: u64,
    partial_lse: u64,
}

impl Shape {
    /// The kernel for this head size.
    fn kernel(self, device: &CudaDevice, pass: &'static str) -> Result<StructKernel> {
        let columns = match self.head_dim {
            ..=64 => 64,
            65..=96 if self.float != Float::F32 => 96,
            65..=128 => 128,
            _ => 256,
        };
        MODULE.kernel(device, StructName { pass, float: self.float, columns: Some(columns) })
    }

    /// A kernel for all head sizes.
    fn elementwise(self, device: &CudaDevice, pass: &'static str) -> Result<StructKernel> {
        MODULE.kernel(device, StructName { pass, float: self.float, columns: None })
    }

    /// The grid on which each row of each head has at least `threads` threads: a power of two.
    fn row_grid(self, kernel: &StructKernel, threads: usize) -> [usize; 3] {
        let rows_per_block = kernel.threads as usize / threads.next_power_of_two();
        [(self.rows * self.heads).div_ceil(rows_per_block), 1, 1]
    }

    fn common(self, params: AttentionParams, causal: bool) -> Result<Common> {
        Ok(Common {
            starts: 0,
            tiles: 0,
            rows: u32::try_from(self.rows)?,
            heads: self.heads as u32,
            groups: self.groups as u32,
            head_dim: self.head_dim as u32,
            causal: causal.into(),
            window: params.window_or_zero(),
            scale: params.scale,
            soft_cap: params.cap_or_zero(),
        })
    }
}

/// How many blocks the GPU runs at a time, roughly.
fn slots(device: &CudaDevice) -> Result<usize> {
    Ok(BLOCKS_PER_MULTIPROCESSOR * multiprocessors(device)?)
}

/// The address of a word of the table.
fn word(table: u64, index: usize) -> u64 {
    table + 4 * index as u64
}
