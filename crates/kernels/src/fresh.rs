//! The result of a kernel before it becomes a tensor: candle's storage, which an op recorded by
//! [`graph`](crate::graph) can move into the graph without a copy.

use candle_core::{
    DType, Device, Result, Shape, Storage, Tensor, WithDType, backend::BackendDevice, bail,
    cpu_backend::CpuDevice, op::BackpropOp,
};

/// Storage with its shape, contiguous from its first element.
pub(crate) struct Fresh {
    pub(crate) storage: Storage,
    pub(crate) shape: Shape,
}

impl Fresh {
    /// Memory on a device, for a kernel that writes all of it.
    ///
    /// # Safety
    /// Every element is written before it is read.
    pub(crate) unsafe fn uninitialized(
        shape: impl Into<Shape>,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let shape = shape.into();
        // SAFETY: the caller's promise.
        let storage = unsafe {
            match device {
                Device::Cpu => Storage::Cpu(CpuDevice.alloc_uninit(&shape, dtype)?),
                Device::Cuda(device) => Storage::Cuda(device.alloc_uninit(&shape, dtype)?),
                Device::Metal(device) => Storage::Metal(device.alloc_uninit(&shape, dtype)?),
            }
        };
        Ok(Self { storage, shape })
    }

    /// A result that was computed on the CPU. The vector has as many elements as the shape.
    pub(crate) fn from_vec<T: WithDType>(values: Vec<T>, shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        debug_assert_eq!(values.len(), shape.elem_count());
        Self { storage: Storage::Cpu(T::to_cpu_storage_owned(values)), shape }
    }

    /// A copy of a small tensor that plain candle ops computed.
    pub(crate) fn copy_of(tensor: &Tensor) -> Result<Self> {
        let dense = tensor.contiguous()?;
        let (storage, layout) = dense.storage_and_layout();
        if layout.start_offset() != 0 {
            bail!("a copy of a part of a tensor was asked for");
        }
        Ok(Self { storage: storage.try_clone(layout)?, shape: tensor.shape().clone() })
    }

    /// A tensor outside of any graph.
    pub(crate) fn into_tensor(self) -> Tensor {
        Tensor::from_storage(self.storage, self.shape, BackpropOp::none(), false)
    }
}
