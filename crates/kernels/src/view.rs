//! Reading the numbers of CPU tensors in place.

use std::cell::Cell;

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result, Storage, StorageRef, Tensor, bail};
use half::{bf16, f16};

/// A locked CPU tensor. Views of one tensor may be held at the same time; nothing is copied.
pub(crate) struct View<'a> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
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
