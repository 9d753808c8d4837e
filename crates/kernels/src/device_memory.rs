//! What memory an accelerator has and has used.

use candle_core::{Device, Result};

/// Bytes of an accelerator's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// The most that tensors have taken at a time, since the device was opened. On Metal: what they take now.
    pub peak: u64,
    /// What is still to be had.
    pub free: u64,
    /// All of it; on Metal what the system advises to use at most.
    pub total: u64,
}

/// Settles how a freshly opened device manages memory: what is freed stays with the process, and nothing is
/// recorded for streams that nobody uses. Without effect on the CPU.
pub fn prepare(device: &Device) -> Result<()> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => cuda::prepare(device),
        _ => Ok(()),
    }
}

/// The memory of an accelerator; none for the CPU.
pub fn device_memory(device: &Device) -> Result<Option<DeviceMemory>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => cuda::memory(device).map(Some),
        #[cfg(feature = "metal")]
        Device::Metal(device) => Ok(Some(metal(device))),
        _ => Ok(None),
    }
}

#[cfg(feature = "metal")]
fn metal(device: &candle_core::MetalDevice) -> DeviceMemory {
    let device = device.device();
    let (used, total) =
        (device.current_allocated_size() as u64, device.recommended_max_working_set_size() as u64);
    DeviceMemory { peak: used, free: total.saturating_sub(used), total }
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::ffi::c_void;

    use candle_core::{
        CudaDevice, Result,
        cuda_backend::{
            WrapErr,
            cudarc::driver::{
                DriverError,
                result::{device, mem_pool},
                sys::{CUmemPool_attribute, CUmemoryPool},
            },
        },
    };

    use super::DeviceMemory;

    pub(super) fn prepare(device: &CudaDevice) -> Result<()> {
        let mut everything = u64::MAX;
        let kept = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        let pool = pool(device).w()?;
        // SAFETY: the pool is that of an open device, and the value of this attribute is 64 bits wide.
        unsafe { mem_pool::set_attribute(pool, kept, (&raw mut everything).cast::<c_void>()) }.w()?;
        // SAFETY: everything runs on the device's one stream, in order; events would only order streams among each other.
        unsafe { device.disable_event_tracking() };
        Ok(())
    }

    pub(super) fn memory(device: &CudaDevice) -> Result<DeviceMemory> {
        let (mut peak, mut used, mut reserved) = (0u64, 0u64, 0u64);
        let pool = pool(device).w()?;
        for (attribute, value) in [
            (CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, &mut peak),
            (CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT, &mut used),
            (CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &mut reserved),
        ] {
            // SAFETY: as above.
            unsafe { mem_pool::get_attribute(pool, attribute, std::ptr::from_mut(value).cast::<c_void>()) }
                .w()?;
        }
        let (free, total) = device.cuda_stream().context().mem_get_info().w()?;
        let kept = reserved.saturating_sub(used);
        Ok(DeviceMemory { peak, free: free as u64 + kept, total: total as u64 })
    }

    fn pool(device: &CudaDevice) -> std::result::Result<CUmemoryPool, DriverError> {
        let stream = device.cuda_stream();
        stream.context().bind_to_thread()?;
        // SAFETY: the device is open.
        unsafe { device::get_default_mem_pool(stream.context().cu_device()) }
    }
}
