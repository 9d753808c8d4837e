//! How much an op has to do.

use candle_core::{DType, Tensor};

use crate::lora::LoraAdapter;

/// What an op must at least move between memory and processor, and compute: each tensor is read or written once. An
/// exponential, a root or a division counts as one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Work {
    /// Bytes read and written.
    pub bytes: u64,
    /// Operations on floating-point numbers; a product with its sum counts as two.
    pub flops: u64,
}

impl Work {
    /// All of these tensors are read or written once.
    pub(crate) fn moving(tensors: &[&Tensor]) -> Self {
        Self { bytes: tensors.iter().map(|tensor| bytes(tensor)).sum(), flops: 0 }
    }

    /// As many tensors as `x` are read and written; `flops` for each element of one.
    pub(crate) fn elementwise(x: &Tensor, tensors: usize, flops: usize) -> Self {
        let count = x.elem_count() as u64;
        Self { bytes: tensors as u64 * bytes(x), flops: flops as u64 * count }
    }

    /// Products of `x [.., K]` with matrices `[N, K]` that are read, results included.
    pub(crate) fn products(x: &Tensor, matrices: &[&Tensor]) -> Self {
        let rows = rows(x);
        let size = x.dtype().size_in_bytes() as u64;
        let of = |matrix: &&Tensor| {
            let outputs = matrix.dims().first().copied().unwrap_or(0) as u64;
            Self {
                bytes: bytes(matrix) + rows * outputs * size,
                flops: 2 * rows * matrix.elem_count() as u64,
            }
        };
        matrices.iter().map(of).fold(Self::moving(&[x]), |sum, part| sum.and(part.bytes, part.flops))
    }

    /// The product of `x [.., N]` with a matrix `[N, K]`, result included.
    pub(crate) fn product(x: &Tensor, matrix: &Tensor) -> Self {
        let (rows, columns) = (rows(x), matrix.dims().last().copied().unwrap_or(0) as u64);
        let result = rows * columns * x.dtype().size_in_bytes() as u64;
        Self::moving(&[x, matrix]).and(result, 2 * rows * matrix.elem_count() as u64)
    }

    /// The sum over rows of the products of `x [.., K]` and `y [.., N]`, `[N, K]` in f32.
    pub(crate) fn outer(x: &Tensor, y: &Tensor) -> Self {
        let width = |tensor: &Tensor| tensor.dims().last().copied().unwrap_or(0) as u64;
        let numbers = width(x) * width(y);
        Self::moving(&[x, y]).and(4 * numbers, 2 * rows(x) * numbers)
    }

    /// So many rows of a table, read in its type and written in another.
    pub(crate) fn gathered(table: &Tensor, count: usize, to: DType) -> Self {
        let numbers = count * table.dims().last().copied().unwrap_or(0);
        let sizes = table.dtype().size_in_bytes() + to.size_in_bytes();
        Self { bytes: (numbers * sizes) as u64, flops: numbers as u64 }
    }

    /// An adapter's delta on so many rows of `x`, added to what is there.
    pub(crate) fn and_delta(self, x: &Tensor, adapter: &LoraAdapter, rows: usize) -> Self {
        let (rows, size) = (rows as u64, x.dtype().size_in_bytes() as u64);
        let (a, b) = (adapter.a.elem_count() as u64, adapter.b.elem_count() as u64);
        let inputs = x.dims().last().copied().unwrap_or(0) as u64;
        let moved = rows * size * (inputs + 2 * adapter.outputs() as u64);
        self.and(moved, 2 * rows * (a + b)).and_moving(&[&adapter.a, &adapter.b])
    }

    /// The gradients of an adapter, from those of its result, which are counted already; and that of `x`, if it is wanted.
    pub(crate) fn and_gradients(self, x: &Tensor, adapter: &LoraAdapter, dx: Option<&Tensor>) -> Self {
        let through = if dx.is_some() { 2 * rows(x) * adapter.a.elem_count() as u64 } else { 0 };
        let read = self.and(0, through).and_moving(&[x]).and_sums(x, adapter);
        dx.map_or(read, |dx| read.and_moving(&[dx, dx]))
    }

    /// What reaches an adapter of the gradient of its result, and both matrices' sums of gradients, read and written.
    pub(crate) fn and_sums(self, x: &Tensor, adapter: &LoraAdapter) -> Self {
        let (a, b) = (adapter.a.elem_count() as u64, adapter.b.elem_count() as u64);
        self.and(8 * (a + b), 2 * rows(x) * (a + 2 * b)).and_moving(&[&adapter.a, &adapter.b])
    }

    /// Another work as well.
    pub(crate) fn and_work(self, other: Self) -> Self {
        self.and(other.bytes, other.flops)
    }

    /// More of both.
    pub(crate) fn and(self, bytes: u64, flops: u64) -> Self {
        Self { bytes: self.bytes + bytes, flops: self.flops + flops }
    }

    /// More tensors that are read or written.
    pub(crate) fn and_moving(self, tensors: &[&Tensor]) -> Self {
        self.and(Self::moving(tensors).bytes, 0)
    }
}

/// The memory of a tensor's elements.
pub(crate) fn bytes(tensor: &Tensor) -> u64 {
    (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64
}

/// All dimensions but the last one, together.
pub(crate) fn rows(tensor: &Tensor) -> u64 {
    tensor.dims().split_last().map_or(0, |(_, leading)| leading.iter().product::<usize>() as u64)
}
