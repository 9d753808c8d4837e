//! Running the Metal kernels on the CPU, in the tests of this crate: the same launches, through the testkit's
//! emulator, on tensors in the CPU's memory.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
};

use candle_core::{CpuStorage, Error, Result, Storage, bail};
use metal_candle_testkit::msl::{self, BufferArgument, CompileOptions, LaneOrder, Library};

use super::{Argument, Launch};

/// How kernels are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mode {
    /// In which order threads run.
    pub(crate) order: LaneOrder,
    /// Find accesses outside of the tensors.
    pub(crate) sanitized: bool,
}

impl Mode {
    /// What every op is run in: three orders, one of them watched by AddressSanitizer.
    pub(crate) const ALL: [Self; 3] = [
        Self { order: LaneOrder::Forward, sanitized: true },
        Self { order: LaneOrder::Backward, sanitized: false },
        Self { order: LaneOrder::Shuffled(1), sanitized: false },
    ];
}

thread_local! {
    static MODE: Cell<Option<Mode>> = const { Cell::new(None) };
    /// By module and by whether it is sanitized.
    static LIBRARIES: RefCell<HashMap<(&'static str, bool), Library>> = RefCell::new(HashMap::new());
}

/// True while a test runs its ops as kernels.
pub(crate) fn is_on() -> bool {
    MODE.get().is_some()
}

/// True where kernels can be emulated; says so where not.
pub(crate) fn is_there() -> bool {
    let probe =
        "#include <metal_stdlib>\nkernel void probe(device float *x [[buffer(0)]]) { x[0] = 1.0f; }\n";
    Library::compile_or_skip(probe, CompileOptions::default()).is_some()
}

/// Runs a test's ops as emulated kernels.
pub(crate) fn with<T>(mode: Mode, run: impl FnOnce() -> T) -> T {
    let before = MODE.replace(Some(mode));
    let result = run();
    MODE.set(before);
    result
}

pub(super) fn launch(launch: &Launch<'_>) -> Result<()> {
    let Some(mode) = MODE.get() else {
        bail!("{}: a kernel was started on the CPU outside of the emulator", launch.kernel.name)
    };
    let memories: Vec<Memory> = launch.arguments.iter().map(Memory::of).collect::<Result<_>>()?;
    let buffers: Vec<BufferArgument<'_>> = memories.iter().map(Memory::argument).collect();
    let dispatch = msl::Launch {
        buffers: &buffers,
        groups: launch.groups.map(|count| count as u32),
        threads: [launch.threads as u32, 1, 1],
        threadgroup_bytes: &[],
        order: mode.order,
    };
    LIBRARIES.with_borrow_mut(|libraries| {
        let module = launch.kernel.module;
        let library = match libraries.entry((module.name, mode.sanitized)) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => {
                let options = CompileOptions {
                    address_sanitizer: mode.sanitized,
                    address_spaces_checked: !mode.sanitized,
                };
                new.insert(Library::compile(module.metal, options).map_err(Error::wrap)?)
            }
        };
        library.run(&launch.kernel.function(launch.variant), &dispatch).map_err(Error::wrap)
    })?;
    for (argument, memory) in launch.arguments.iter().zip(&memories) {
        memory.write_back(argument);
    }
    Ok(())
}

/// A copy of what a kernel is given, so that accesses outside of a tensor are outside of an allocation too.
enum Memory {
    ReadOnly(Vec<u8>),
    Writable(Vec<Cell<u8>>),
}

impl Memory {
    fn of(argument: &Argument<'_>) -> Result<Self> {
        Ok(match argument {
            Argument::Read(tensor) => {
                let (storage, layout) = tensor.storage_and_layout();
                Self::ReadOnly(bytes(&storage, layout.start_offset(), tensor.elem_count())?.to_vec())
            }
            Argument::ReadRows(tensor) => {
                let (storage, layout) = tensor.storage_and_layout();
                let (dims, last) = (layout.dims(), layout.dims()[0].saturating_sub(1));
                let span = if dims[0] == 0 { 0 } else { last * layout.stride()[0] + dims[1] * dims[2] };
                Self::ReadOnly(bytes(&storage, layout.start_offset(), span)?.to_vec())
            }
            Argument::Update(tensor) => {
                let (storage, layout) = tensor.storage_and_layout();
                let bytes = bytes(&storage, layout.start_offset(), tensor.elem_count())?;
                Self::Writable(bytes.iter().copied().map(Cell::new).collect())
            }
            // All ones is not a number in any float type: what is not written shows.
            Argument::Write(fresh) => {
                let bytes = bytes(&fresh.storage, 0, fresh.shape.elem_count())?;
                Self::Writable(vec![Cell::new(0xff); bytes.len()])
            }
            Argument::U32(value) => Self::ReadOnly(value.to_ne_bytes().to_vec()),
            Argument::F32(value) => Self::ReadOnly(value.to_ne_bytes().to_vec()),
        })
    }

    fn argument(&self) -> BufferArgument<'_> {
        match self {
            Self::ReadOnly(bytes) => BufferArgument::Bytes(bytes),
            Self::Writable(bytes) => BufferArgument::Memory(bytes),
        }
    }

    fn write_back(&self, argument: &Argument<'_>) {
        let Self::Writable(results) = self else { return };
        let (guard, start) = match argument {
            Argument::Update(tensor) => {
                let (storage, layout) = tensor.storage_and_layout();
                (Some(storage), layout.start_offset())
            }
            _ => (None, 0),
        };
        let storage = match (argument, &guard) {
            (Argument::Write(fresh), _) => &fresh.storage,
            (_, Some(storage)) => &**storage,
            _ => return,
        };
        let size = size_of_element(storage).expect("it was read before");
        let all = bytes(storage, start, results.len() / size).expect("it was read before");
        let to = all.as_ptr().cast_mut();
        for (index, byte) in results.iter().enumerate() {
            // SAFETY: the test's thread is the only one that knows this tensor, and no reference to its
            // elements lives while a kernel runs, as on a GPU.
            unsafe { to.add(index).write(byte.get()) };
        }
    }
}

/// `count` elements of a CPU storage.
fn bytes(storage: &Storage, start: usize, count: usize) -> Result<&[u8]> {
    fn of<T>(elements: &[T], start: usize, count: usize) -> &[u8] {
        let elements = &elements[start..start + count];
        // SAFETY: all types here are plain numbers.
        unsafe { std::slice::from_raw_parts(elements.as_ptr().cast(), size_of_val(elements)) }
    }
    let Storage::Cpu(storage) = storage else { bail!("the emulator works on CPU tensors") };
    Ok(match storage {
        CpuStorage::F32(elements) => of(elements, start, count),
        CpuStorage::F16(elements) => of(elements, start, count),
        CpuStorage::BF16(elements) => of(elements, start, count),
        CpuStorage::U32(elements) => of(elements, start, count),
        CpuStorage::U8(elements) => of(elements, start, count),
        CpuStorage::I64(elements) => of(elements, start, count),
        _ => bail!("no kernel reads tensors of this type"),
    })
}

fn size_of_element(storage: &Storage) -> Result<usize> {
    use candle_core::backend::BackendStorage;
    let Storage::Cpu(storage) = storage else { bail!("the emulator works on CPU tensors") };
    Ok(storage.dtype().size_in_bytes())
}
