//! NVIDIA GPUs: `attention/cuda/attention.cu`, whose arguments.cuh describes what the structs here mean.
//!
//! T: rows of the call, H: query heads, G: key/value heads, D: head size.

pub(super) mod cached;
pub(super) mod packed;

use candle_core::{CudaDevice, Device, Result, Tensor};

use super::tiles::Sight;
use crate::{
    attention::AttentionParams,
    gpu::{
        Float,
        cuda::{StructKernel, StructModule, StructName, multiprocessors},
    },
    view::has_dense_rows,
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

/// Sizes of a call.
#[derive(Clone, Copy)]
struct Shape {
    float: Float,
    rows: usize,
    heads: usize,
    groups: usize,
    head_dim: usize,
}

impl Shape {
    fn of(queries: &Tensor, groups: usize) -> Result<Self> {
        let (rows, heads, head_dim) = queries.dims3()?;
        Ok(Self { float: Float::of(queries)?, rows, heads, groups, head_dim })
    }

    /// Query heads per key/value head.
    fn share(self) -> usize {
        self.heads / self.groups
    }

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
            // A window of more than fits is none.
            window: params.window.map_or(0, |window| u32::try_from(window).unwrap_or(0)),
            scale: params.scale,
            soft_cap: params.soft_cap.unwrap_or(0.),
        })
    }
}

/// How many blocks the GPU runs at a time, roughly.
fn slots(device: &CudaDevice) -> Result<usize> {
    Ok(BLOCKS_PER_MULTIPROCESSOR * multiprocessors(device)?)
}

fn sight(params: AttentionParams, causal: bool) -> Sight {
    Sight { causal, window: params.window }
}

/// Whether the kernels can read the rows where they are: they copy 16 bytes at a time.
fn is_aligned(tensor: &Tensor) -> bool {
    let layout = tensor.layout();
    let aligned = |elements: usize| (elements * tensor.dtype().size_in_bytes()).is_multiple_of(16);
    has_dense_rows(layout) && aligned(layout.start_offset()) && aligned(layout.stride()[0])
}

/// The tensor itself, or a copy that the kernels can read.
fn aligned(tensor: &Tensor) -> Result<Tensor> {
    if is_aligned(tensor) { Ok(tensor.clone()) } else { tensor.force_contiguous() }
}

/// A table on the GPU, in one copy; its parts start at `offsets`, in bytes.
struct Table {
    words: Vec<u32>,
}

impl Table {
    fn new() -> Self {
        Self { words: Vec::new() }
    }

    /// Appends words; returns where they start, in bytes.
    fn append(&mut self, words: impl IntoIterator<Item = u32>) -> u64 {
        let start = 4 * self.words.len() as u64;
        self.words.extend(words);
        start
    }

    fn upload(self, device: &CudaDevice) -> Result<Tensor> {
        let length = self.words.len();
        Tensor::from_vec(self.words, length, &Device::Cuda(device.clone()))
    }
}
