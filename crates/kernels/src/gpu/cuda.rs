//! Launches on an NVIDIA GPU.

use std::{
    ffi::c_void,
    fmt,
    ptr::{from_ref, null_mut},
    sync::Arc,
};

use candle_core::{
    CudaDevice, CudaStorage, Result, Storage, bail,
    cuda_backend::{
        CudaStorageSlice, DeviceId, WrapErr,
        cudarc::{
            driver::{
                CudaFunction, CudaModule, CudaStream, DevicePtr, SyncOnDrop,
                sys::{
                    CUdevice_attribute, CUfunction_attribute_enum, CUlaunchAttribute, CUlaunchAttributeID,
                    CUlaunchConfig, cuLaunchKernelEx,
                },
            },
            nvrtc::Ptx,
        },
    },
};

use super::{Argument, Float, Launch, cache::Cache};

pub(super) type Modules = Cache<DeviceId, Arc<CudaModule>>;
pub(super) type Functions = Cache<DeviceId, Function>;

/// A kernel, loaded.
#[derive(Clone)]
pub(super) struct Function {
    function: CudaFunction,
    /// Whether it waits itself for the launch before it, and so may come near before that has ended.
    waits: bool,
}

/// How many blocks of how many threads, and each block's dynamic shared memory.
struct Grid {
    blocks: [usize; 3],
    threads: u32,
    shared_bytes: u32,
}

/// Kernels of `src/<op>/cuda/*.cu`. Each takes one struct by value; beside it the module has, as `{kernel}_launch`, how it
/// wants to be started.
pub(crate) struct StructModule {
    image: &'static [u8],
    modules: Modules,
    kernels: Cache<(DeviceId, StructName), StructKernel>,
}

/// A kernel is called `{pass}_{type}_{columns}`; one for all head sizes has no columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StructName {
    pub(crate) pass: &'static str,
    pub(crate) float: Float,
    pub(crate) columns: Option<u32>,
}

/// One of them, loaded.
#[derive(Clone)]
pub(crate) struct StructKernel {
    function: Function,
    /// Per block, or the most of them.
    pub(crate) threads: u32,
    pub(crate) shared_bytes: u32,
    /// Rows that a block works on.
    pub(crate) rows: u32,
}

/// # Safety
/// As [`super::launch`].
pub(super) unsafe fn launch(device: &CudaDevice, launch: &Launch<'_>) -> Result<()> {
    let function = function(device, launch)?;
    let grid = Grid { blocks: launch.groups, threads: launch.threads as u32, shared_bytes: 0 };
    with_addresses(device, launch.kernel.name, launch.arguments, |addresses| {
        let mut arguments: Vec<*mut c_void> = launch
            .arguments
            .iter()
            .zip(addresses)
            .map(|(argument, address)| match argument {
                Argument::U32(value) => from_ref(value).cast_mut().cast(),
                Argument::F32(value) => from_ref(value).cast_mut().cast(),
                Argument::Read(_) | Argument::ReadRows(_) | Argument::Update(_) | Argument::Write(_) => {
                    from_ref(address).cast_mut().cast()
                }
            })
            .collect();
        // SAFETY: the caller's promise; every address lies in memory that lives until after the launch.
        unsafe { function.start(&device.cuda_stream(), &grid, &mut arguments) }
    })
}

/// Calls `run` with the address of each argument's first element, 0 for numbers, while the storages are locked. Other
/// streams are told of the use when `run` returns. `name` is for the errors' messages.
pub(crate) fn with_addresses<T>(
    device: &CudaDevice,
    name: &str,
    arguments: &[Argument<'_>],
    run: impl FnOnce(&[u64]) -> Result<T>,
) -> Result<T> {
    let stream = device.cuda_stream();
    let tensors: Vec<_> = arguments
        .iter()
        .map(|argument| match argument {
            Argument::Read(tensor) | Argument::ReadRows(tensor) | Argument::Update(tensor) => {
                Some(tensor.storage_and_layout())
            }
            Argument::Write(_) | Argument::U32(_) | Argument::F32(_) => None,
        })
        .collect();
    let mut uses = Vec::with_capacity(tensors.len());
    let mut addresses = Vec::with_capacity(tensors.len());
    for (argument, tensor) in arguments.iter().zip(&tensors) {
        let (storage, offset) = match (argument, tensor) {
            (_, Some((storage, layout))) => (&**storage, layout.start_offset()),
            (Argument::Write(fresh), None) => (&fresh.storage, 0),
            (_, None) => {
                addresses.push(0);
                continue;
            }
        };
        let Storage::Cuda(storage) = storage else {
            bail!("{name}: a tensor is not on the GPU, where the others of the call are");
        };
        let (address, guard) = address(storage, &stream)?;
        uses.push(guard);
        addresses.push(address + (offset * size(storage)) as u64);
    }
    run(&addresses)
}

/// The function, loaded on first use.
fn function(device: &CudaDevice, launch: &Launch<'_>) -> Result<Function> {
    let kernel = launch.kernel;
    kernel.functions[launch.variant.index()].get(device.id(), || {
        let module = kernel.module.modules.get(device.id(), || {
            let image = Ptx::from_binary(kernel.module.cuda.to_vec());
            device.cuda_stream().context().load_module(image).w()
        })?;
        Function::load(&module, &kernel.function(launch.variant))
    })
}

impl Function {
    fn load(module: &Arc<CudaModule>, name: &str) -> Result<Self> {
        let function = module.load_function(name).w()?;
        // `BEGIN` of prelude.cuh is empty in what was compiled for older GPUs.
        const HOPPER: i32 = 90;
        let compiled_for =
            function.get_attribute(CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_PTX_VERSION).w()?;
        Ok(Self { function, waits: compiled_for >= HOPPER })
    }

    /// # Safety
    /// `arguments` point to what the kernel takes, and what it reads and writes is there.
    unsafe fn start(&self, stream: &CudaStream, grid: &Grid, arguments: &mut [*mut c_void]) -> Result<()> {
        let mut near = CUlaunchAttribute {
            id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            // SAFETY: numbers and pointers, for which zeros are values.
            value: unsafe { std::mem::zeroed() },
        };
        near.value.programmaticStreamSerializationAllowed = 1;
        let [x, y, z] = grid.blocks.map(|count| count as u32);
        let config = CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: grid.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared_bytes,
            hStream: stream.cu_stream(),
            attrs: &raw mut near,
            numAttrs: self.waits.into(),
        };
        stream.context().bind_to_thread().w()?;
        let function = self.function.cu_function();
        // SAFETY: the caller's promise; the driver copies all it is given.
        unsafe { cuLaunchKernelEx(&raw const config, function, arguments.as_mut_ptr(), null_mut()) }
            .result()
            .w()
    }
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

impl StructModule {
    pub(crate) const fn new(image: &'static [u8]) -> Self {
        Self { image, modules: Modules::new(), kernels: Cache::new() }
    }

    /// The kernel, loaded on first use.
    pub(crate) fn kernel(&self, device: &CudaDevice, name: StructName) -> Result<StructKernel> {
        self.kernels.get((device.id(), name), || {
            let module = self.modules.get(device.id(), || {
                let image = Ptx::from_binary(self.image.to_vec());
                device.cuda_stream().context().load_module(image).w()
            })?;
            StructKernel::load(device, &module, &name.to_string())
        })
    }
}

impl StructKernel {
    fn load(device: &CudaDevice, module: &Arc<CudaModule>, name: &str) -> Result<Self> {
        /// What a block may have without being asked for.
        const USUAL_SHARED_BYTES: u32 = 48 << 10;
        let stream = device.cuda_stream();
        let function = Function::load(module, name)?;
        let wishes = stream.clone_dtoh(&module.get_global(&format!("{name}_launch"), &stream).w()?).w()?;
        let (wishes, []) = wishes.as_chunks::<4>() else { bail!("{name}_launch is not made of u32") };
        let &[threads, shared_bytes, rows] = wishes else {
            bail!("{name}_launch has {} numbers", wishes.len())
        };
        let [threads, shared_bytes, rows] = [threads, shared_bytes, rows].map(u32::from_le_bytes);
        if shared_bytes > USUAL_SHARED_BYTES {
            let attribute = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            if let Err(error) = function.function.set_attribute(attribute, shared_bytes as i32) {
                bail!("{name} needs {shared_bytes} bytes of shared memory, which this GPU has not: {error}");
            }
        }
        Ok(Self { function, threads, shared_bytes, rows })
    }

    /// Starts the kernel. A grid without blocks does nothing.
    ///
    /// # Safety
    /// `arguments` is laid out as the struct that the kernel takes. What the kernel reads and writes by its addresses is
    /// there: they come from a [`with_addresses`] that is still running.
    pub(crate) unsafe fn launch<A: Copy>(
        &self,
        device: &CudaDevice,
        grid: [usize; 3],
        arguments: A,
    ) -> Result<()> {
        /// Blocks along `x`, `y` and `z`.
        const MOST: [usize; 3] = [i32::MAX as usize, 65535, 65535];
        if grid.contains(&0) {
            return Ok(());
        }
        if grid.iter().zip(MOST).any(|(count, most)| *count > most) {
            bail!("a grid of {grid:?} blocks is too large, at most {MOST:?}: pass fewer rows per call");
        }
        crate::trace::launched(1);
        let grid = Grid { blocks: grid, threads: self.threads, shared_bytes: self.shared_bytes };
        let argument = from_ref(&arguments).cast_mut().cast();
        // SAFETY: the caller's promise.
        unsafe { self.function.start(&device.cuda_stream(), &grid, &mut [argument]) }
    }
}

impl fmt::Display for StructName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pass, float, columns } = self;
        write!(formatter, "{pass}_{}", float.name())?;
        columns.map_or(Ok(()), |columns| write!(formatter, "_{columns}"))
    }
}

/// Blocks' homes: the GPU's multiprocessors.
pub(crate) fn multiprocessors(device: &CudaDevice) -> Result<usize> {
    number(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
}

/// Whether the GPU has what came with Hopper.
pub(crate) fn is_hopper(device: &CudaDevice) -> Result<bool> {
    Ok(number(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? >= 9)
}

/// Shared memory that a block can ask for.
pub(crate) fn most_shared_bytes(device: &CudaDevice) -> Result<usize> {
    number(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
}

fn number(device: &CudaDevice, attribute: CUdevice_attribute) -> Result<usize> {
    Ok(device.cuda_stream().context().attribute(attribute).w()? as usize)
}
