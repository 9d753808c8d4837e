//! Reading the numbers of CPU tensors in place.

use std::cell::Cell;

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result, Storage, StorageRef, Tensor, bail};
use half::{bf16, f16};

/// A locked CPU tensor. Views of one tensor may be held at the same time; nothing is copied.
pub(crate) struct View<'a> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

/// The numbers of a tensor `[rows, heads, D]` whose rows are dense, but may lie apart: a part of a wider matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StridedRows<'a> {
    pub(crate) numbers: &'a [f32],
    /// Floats from one row to the next.
    pub(crate) stride: usize,
}

/// The numbers of a contiguous tensor.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Floats<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
}

impl<'a> View<'a> {
    pub(crate) fn new(tensor: &'a Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        Self { storage, layout }
    }

    /// The numbers, whatever float type they have. `name` is for the error's message.
    pub(crate) fn floats(&self, name: &str) -> Result<Floats<'_>> {
        let Storage::Cpu(storage) = &*self.storage else {
            bail!("{name} is not on the CPU, where the other tensors of the call are");
        };
        let Some((start, end)) = self.layout.contiguous_offsets() else {
            bail!(
                "{name} must be contiguous; its shape is {:?} with strides {:?}",
                self.layout.dims(),
                self.layout.stride()
            );
        };
        Ok(match storage {
            CpuStorage::F32(numbers) => Floats::F32(&numbers[start..end]),
            CpuStorage::BF16(numbers) => Floats::Bf16(&numbers[start..end]),
            CpuStorage::F16(numbers) => Floats::F16(&numbers[start..end]),
            other => bail!("{name} has dtype {:?}; use f32, bf16 or f16", dtype(other)),
        })
    }

    /// The numbers of a tensor that must be `f32`.
    pub(crate) fn f32s(&self, name: &str) -> Result<&[f32]> {
        match self.floats(name)? {
            Floats::F32(numbers) => Ok(numbers),
            Floats::Bf16(_) => bail!("{name} has dtype bf16; on the CPU it must be f32"),
            Floats::F16(_) => bail!("{name} has dtype f16; on the CPU it must be f32"),
        }
    }

    /// The rows of a tensor `[rows, heads, D]` that must be `f32` and pass [`has_dense_rows`].
    pub(crate) fn f32_rows(&self, name: &str) -> Result<StridedRows<'_>> {
        if self.layout.is_contiguous() {
            let width = self.layout.dims()[1..].iter().product();
            return Ok(StridedRows { numbers: self.f32s(name)?, stride: width });
        }
        let Storage::Cpu(CpuStorage::F32(numbers)) = &*self.storage else {
            bail!("{name} is not f32 on the CPU");
        };
        assert!(has_dense_rows(self.layout), "{name} has rows that are not dense");
        let (dims, stride) = (self.layout.dims(), self.layout.stride()[0]);
        let start = self.layout.start_offset();
        let end = start + (dims[0] - 1) * stride + dims[1] * dims[2];
        Ok(StridedRows { numbers: &numbers[start..end], stride })
    }
}

/// Whether each row of `[rows, heads, D]` lies in one piece and the rows follow one another.
pub(crate) fn has_dense_rows(layout: &Layout) -> bool {
    let (&[rows, heads, head_dim], &[row, head, element]) = (layout.dims(), layout.stride()) else {
        return false;
    };
    layout.is_contiguous()
        || rows > 0
            && (rows == 1 || row >= heads * head_dim)
            && (heads == 1 || head == head_dim)
            && (head_dim == 1 || element == 1)
}

impl<'a> StridedRows<'a> {
    /// One head of one row.
    #[inline(always)]
    pub(crate) fn head(&self, row: usize, head: usize, head_dim: usize) -> &'a [f32] {
        &self.numbers[row * self.stride + head * head_dim..][..head_dim]
    }
}

impl Floats<'_> {
    /// A widened copy.
    pub(crate) fn to_f32s(self) -> Vec<f32> {
        match self {
            Floats::F32(numbers) => numbers.to_vec(),
            Floats::Bf16(numbers) => numbers.iter().map(|number| number.to_f32()).collect(),
            Floats::F16(numbers) => numbers.iter().map(|number| number.to_f32()).collect(),
        }
    }

    /// Some of the numbers.
    pub(crate) fn slice(self, range: std::ops::Range<usize>) -> Self {
        match self {
            Floats::F32(numbers) => Floats::F32(&numbers[range]),
            Floats::Bf16(numbers) => Floats::Bf16(&numbers[range]),
            Floats::F16(numbers) => Floats::F16(&numbers[range]),
        }
    }

    /// Bytes per number.
    pub(crate) fn size(self) -> usize {
        match self {
            Floats::F32(_) => 4,
            Floats::Bf16(_) | Floats::F16(_) => 2,
        }
    }
}

fn dtype(storage: &CpuStorage) -> DType {
    use candle_core::backend::BackendStorage;
    storage.dtype()
}

/// Changes the numbers of a contiguous `f32` tensor on the CPU where they are. No tensor that `change` reads may
/// share its memory. `name` is for the error's message.
pub(crate) fn update(
    tensor: &Tensor,
    name: &'static str,
    change: impl FnOnce(&mut [f32]) -> Result<()>,
) -> Result<()> {
    struct Update<F> {
        name: &'static str,
        change: Cell<Option<F>>,
    }

    impl<F: FnOnce(&mut [f32]) -> Result<()>> InplaceOp1 for Update<F> {
        fn name(&self) -> &'static str {
            self.name
        }

        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            let CpuStorage::F32(numbers) = storage else {
                bail!("{} has dtype {:?}; it must be f32", self.name, dtype(storage));
            };
            let Some((start, end)) = layout.contiguous_offsets() else {
                bail!("{} must be contiguous to be changed in place", self.name);
            };
            let change = self.change.take().expect("candle applies an op once");
            change(&mut numbers[start..end])
        }
    }

    tensor.inplace_op1(&Update { name, change: Cell::new(Some(change)) })
}
