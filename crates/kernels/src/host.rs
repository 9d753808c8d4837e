//! Tensors on the CPU: read as slices, written in parallel.

use std::{marker::PhantomData, ops::Deref, ops::Range};

use candle_core::{Result, Storage, StorageRef, Tensor, WithDType, bail};

/// The elements of a contiguous CPU tensor, locked for reading.
pub(crate) struct HostSlice<'a, T> {
    storage: StorageRef<'a>,
    range: Range<usize>,
    element: PhantomData<T>,
}

impl<'a, T: WithDType> HostSlice<'a, T> {
    /// `operation` and `name` (of the argument) are for the error message.
    pub(crate) fn read(tensor: &'a Tensor, operation: &str, name: &str) -> Result<Self> {
        if !tensor.device().is_cpu() {
            bail!(
                "{operation}: `{name}` is on {:?}, expected the CPU like the other tensors",
                tensor.device()
            );
        }
        if tensor.dtype() != T::DTYPE {
            let (found, expected) = (tensor.dtype(), T::DTYPE);
            bail!("{operation}: `{name}` is {found:?}, expected {expected:?} on the CPU");
        }
        let (storage, layout) = tensor.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else {
            let (shape, stride) = (layout.dims(), layout.stride());
            bail!("{operation}: `{name}` {shape:?} has the strides {stride:?}; make it contiguous first");
        };
        Ok(Self { storage, range: start..end, element: PhantomData })
    }
}

impl<T: WithDType> Deref for HostSlice<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let Storage::Cpu(storage) = &*self.storage else { unreachable!("`read` checked the device") };
        &storage.as_slice().expect("`read` checked the dtype")[self.range.clone()]
    }
}

/// Where a kernel writes: threads may share it as long as they write to different places.
#[derive(Clone, Copy)]
pub(crate) struct Output<T>(*mut T);

// SAFETY: it is only an address; every write through it is `unsafe` and promises to race with no other.
unsafe impl<T: Send> Send for Output<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Output<T> {}

impl<T> Output<T> {
    /// The address of an element.
    ///
    /// # Safety
    /// `index` lies within the memory that this output was made for, or one past its end.
    #[inline(always)]
    pub(crate) unsafe fn at(self, index: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(index) }
    }
}

/// A vector of `length` elements, all written by `fill`.
///
/// # Safety
/// `fill` must write every element.
pub(crate) unsafe fn filled<T: Copy>(length: usize, fill: impl FnOnce(Output<T>)) -> Vec<T> {
    let mut vector = Vec::with_capacity(length);
    fill(Output(vector.as_mut_ptr()));
    // SAFETY: the capacity is `length`, and the caller promises that `fill` wrote all of it.
    unsafe { vector.set_len(length) };
    vector
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn a_view_is_read_from_its_own_first_element() {
        let tensor = Tensor::arange(0f32, 12., &Device::Cpu).unwrap().reshape((4, 3)).unwrap();
        let view = tensor.narrow(0, 1, 2).unwrap();
        assert_eq!(*HostSlice::<f32>::read(&view, "op", "x").unwrap(), [3., 4., 5., 6., 7., 8.]);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let message = |tensor: &Tensor| match HostSlice::<f32>::read(tensor, "rope", "x") {
            Ok(_) => panic!("expected an error"),
            Err(error) => error.to_string(),
        };
        let tensor = Tensor::zeros((4, 3), DType::F32, &Device::Cpu).unwrap();
        let transposed = message(&tensor.t().unwrap());
        assert!(transposed.starts_with("rope: `x` [3, 4] has the strides [1, 3]"), "{transposed}");
        let narrow = message(&tensor.to_dtype(DType::BF16).unwrap());
        assert!(narrow.starts_with("rope: `x` is BF16, expected F32"), "{narrow}");
    }
}
