//! Launches on an Apple GPU.

use std::ffi::c_void;

use candle_core::{Error, MetalDevice, Result, Storage, bail, metal_backend::DeviceId};
use candle_metal_kernels::metal::{ComputePipeline, Library};
use objc2_metal::MTLSize;

use super::{Argument, Launch, cache::Cache};

pub(super) type Libraries = Cache<DeviceId, Library>;
pub(super) type Pipelines = Cache<DeviceId, ComputePipeline>;

/// # Safety
/// As [`super::launch`].
pub(super) unsafe fn launch(device: &MetalDevice, launch: &Launch<'_>) -> Result<()> {
    let pipeline = pipeline(device, launch)?;
    if launch.threads > pipeline.max_total_threads_per_threadgroup() {
        let (name, most) = (launch.kernel.name, pipeline.max_total_threads_per_threadgroup());
        bail!("{name}: this GPU runs it with at most {most} threads per group, not {}", launch.threads);
    }
    let commands = device.command_encoder()?;
    #[cfg(feature = "metal-labels")]
    let _named = commands.debug_group(launch.kernel.name);
    let encoder = commands.as_ref();
    encoder.set_compute_pipeline_state(&pipeline);
    for (index, argument) in launch.arguments.iter().enumerate() {
        match argument {
            Argument::Read(tensor) | Argument::ReadRows(tensor) | Argument::Update(tensor) => {
                let (storage, layout) = tensor.storage_and_layout();
                let Storage::Metal(storage) = &*storage else { bail!("{}", elsewhere(launch)) };
                let offset = layout.start_offset() * tensor.dtype().size_in_bytes();
                if matches!(argument, Argument::Read(_) | Argument::ReadRows(_)) {
                    encoder.set_input_buffer(index, Some(storage.buffer()), offset);
                } else {
                    encoder.set_output_buffer(index, Some(storage.buffer()), offset);
                }
            }
            Argument::Write(fresh) => {
                let Storage::Metal(storage) = &fresh.storage else { bail!("{}", elsewhere(launch)) };
                encoder.set_output_buffer(index, Some(storage.buffer()), 0);
            }
            Argument::U32(value) => {
                encoder.set_bytes_directly(
                    index,
                    size_of::<u32>(),
                    std::ptr::from_ref(value).cast::<c_void>(),
                );
            }
            Argument::F32(value) => {
                encoder.set_bytes_directly(
                    index,
                    size_of::<f32>(),
                    std::ptr::from_ref(value).cast::<c_void>(),
                );
            }
        }
    }
    let [width, height, depth] = launch.groups;
    encoder.dispatch_thread_groups(
        MTLSize { width, height, depth },
        MTLSize { width: launch.threads, height: 1, depth: 1 },
    );
    Ok(())
}

/// The function, compiled on first use.
fn pipeline(device: &MetalDevice, launch: &Launch<'_>) -> Result<ComputePipeline> {
    let (kernel, metal) = (launch.kernel, device.metal_device());
    kernel.pipelines[launch.variant.index()].get(device.id(), || {
        let library = kernel.module.libraries.get(device.id(), || {
            let library = metal.new_library_with_source(kernel.module.metal, None);
            library
                .map_err(|error| Error::wrap(error).context(format!("the kernels of {}", kernel.module.name)))
        })?;
        let function = library.get_function(&kernel.function(launch.variant), None).map_err(Error::wrap)?;
        metal.new_compute_pipeline_state_with_function(&function).map_err(Error::wrap)
    })
}

fn elsewhere(launch: &Launch<'_>) -> String {
    format!("{}: a tensor is not on the GPU, where the others of the call are", launch.kernel.name)
}
