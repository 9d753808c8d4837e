//! Launches on an NVIDIA GPU.

use std::sync::Arc;

use candle_core::{
    CudaDevice, CudaStorage, Result, Storage, bail,
    cuda_backend::{
        CudaStorageSlice, DeviceId, WrapErr,
        cudarc::{
            driver::{
                CudaFunction, CudaModule, CudaStream, DevicePtr, LaunchConfig, PushKernelArg, SyncOnDrop,
            },
            nvrtc::Ptx,
        },
    },
};

use super::{Argument, Launch, cache::Cache};

pub(super) type Modules = Cache<DeviceId, Arc<CudaModule>>;
pub(super) type Functions = Cache<DeviceId, CudaFunction>;

/// # Safety
/// As [`super::launch`].
pub(super) unsafe fn launch(device: &CudaDevice, launch: &Launch<'_>) -> Result<()> {
    let function = function(device, launch)?;
    let stream = device.cuda_stream();
    // The guards keep the storages locked, and tell other streams of this use when they are dropped.
    let tensors: Vec<_> = launch
        .arguments
        .iter()
        .map(|argument| match argument {
            Argument::Read(tensor) | Argument::Update(tensor) => Some(tensor.storage_and_layout()),
            Argument::Write(_) | Argument::U32(_) | Argument::F32(_) => None,
        })
        .collect();
    let mut uses = Vec::with_capacity(tensors.len());
    let mut addresses = Vec::with_capacity(tensors.len());
    for (argument, tensor) in launch.arguments.iter().zip(&tensors) {
        let (storage, offset) = match (argument, tensor) {
            (_, Some((storage, layout))) => (&**storage, layout.start_offset()),
            (Argument::Write(fresh), None) => (&fresh.storage, 0),
            (_, None) => {
                addresses.push(0);
                continue;
            }
        };
        let Storage::Cuda(storage) = storage else {
            bail!("{}: a tensor is not on the GPU, where the others of the call are", launch.kernel.name);
        };
        let (address, guard) = address(storage, &stream)?;
        uses.push(guard);
        addresses.push(address + (offset * size(storage)) as u64);
    }
    let mut builder = stream.launch_builder(&function);
    for (argument, address) in launch.arguments.iter().zip(&addresses) {
        match argument {
            Argument::U32(value) => builder.arg(value),
            Argument::F32(value) => builder.arg(value),
            Argument::Read(_) | Argument::Update(_) | Argument::Write(_) => builder.arg(address),
        };
    }
    let config = LaunchConfig {
        grid_dim: launch.groups.map(|count| count as u32).into(),
        block_dim: (launch.threads as u32, 1, 1),
        shared_mem_bytes: 0,
    };
    // SAFETY: the caller's promise; every address lies in memory that `tensors` and the results keep alive.
    unsafe { builder.launch(config) }.w()?;
    Ok(())
}

/// The function, loaded on first use.
fn function(device: &CudaDevice, launch: &Launch<'_>) -> Result<CudaFunction> {
    let kernel = launch.kernel;
    kernel.functions[launch.variant.index()].get(device.id(), || {
        let module = kernel.module.modules.get(device.id(), || {
            let image = Ptx::from_binary(kernel.module.cuda.to_vec());
            device.cuda_stream().context().load_module(image).w()
        })?;
        module.load_function(&kernel.function(launch.variant)).w()
    })
}

/// Where a storage begins, and the guard of its use.
fn address<'a>(storage: &'a CudaStorage, stream: &'a CudaStream) -> Result<(u64, SyncOnDrop<'a>)> {
    Ok(match &storage.slice {
        CudaStorageSlice::U8(slice) => slice.device_ptr(stream),
        CudaStorageSlice::U32(slice) => slice.device_ptr(stream),
        CudaStorageSlice::I64(slice) => slice.device_ptr(stream),
        CudaStorageSlice::BF16(slice) => slice.device_ptr(stream),
        CudaStorageSlice::F16(slice) => slice.device_ptr(stream),
        CudaStorageSlice::F32(slice) => slice.device_ptr(stream),
        _ => bail!("a kernel was handed a tensor of a type that no kernel reads"),
    })
}

/// Bytes per element.
fn size(storage: &CudaStorage) -> usize {
    use candle_core::backend::BackendStorage;
    storage.dtype().size_in_bytes()
}
