//! NVIDIA GPUs: a dense layer for few rows and their adapters in one launch, `lora/cuda/few_rows.cuh`.

use candle_core::{CudaDevice, DType, Device, Result, Tensor};

use crate::{
    fresh::Fresh,
    gpu::{
        Argument, Float,
        cuda::{StructModule, StructName, most_shared_bytes, with_addresses},
    },
    linear::Projection,
};

static MODULE: StructModule =
    StructModule::new(include_bytes!(concat!(env!("OUT_DIR"), "/few_rows_cuda.fatbin")));

/// As in few_rows.cuh.
const ROWS: usize = 16;
const COLUMNS: usize = 32;
const RANKS: usize = 8;
/// Inputs that the warps of a block take in turns.
const TURN: usize = 64;
/// The ranks for which there are kernels.
const MOST_RANKS: [u32; 2] = [16, 64];
/// What a block of the largest kernel needs.
const SHARED_BYTES: usize = 164 << 10;

/// What the blocks of a launch tell each other. Launches that share it must follow one another, as those of a device do.
#[derive(Debug, Clone)]
pub(super) struct Memory {
    /// `[ROWS, r]`
    down: Tensor,
    /// Zero before and after each launch.
    counters: Tensor,
}

/// The adapters of a call: `[slots, r, K]`, `[slots, N, r]`, `[slots]`, and the slot of each row.
pub(super) struct Adapters<'a> {
    pub(super) a: &'a Tensor,
    pub(super) b: &'a Tensor,
    pub(super) scales: &'a Tensor,
    pub(super) slots: &'a Tensor,
    pub(super) memory: &'a Memory,
}

/// As in few_rows.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
struct Arguments {
    x: u64,
    weight: u64,
    bias: u64,
    y: u64,
    a: u64,
    b: u64,
    scales: u64,
    slots: u64,
    down: u64,
    counters: u64,
    rows: u32,
    inputs: u32,
    outputs: u32,
    rank: u32,
    slot_count: u32,
    down_blocks: u32,
}

impl Memory {
    pub(super) fn new(rank: usize, device: &Device) -> Result<Self> {
        let down = Tensor::zeros((ROWS, rank), DType::F32, device)?;
        Ok(Self { down, counters: Tensor::zeros(2, DType::U32, device)? })
    }
}

/// Whether the kernels take `x [M, K]` with this layer and these adapters.
pub(super) fn takes(x: &Tensor, projection: &Projection, adapters: &Adapters<'_>) -> Result<bool> {
    let Device::Cuda(device) = x.device() else { return Ok(false) };
    let ((rows, inputs), (_, rank, _)) = (x.dims2()?, adapters.a.dims3()?);
    let tensors =
        [Some(x), Some(&projection.weight), projection.bias.as_ref(), Some(adapters.a), Some(adapters.b)];
    let suits = |tensor: &Tensor| {
        tensor.dtype() == x.dtype()
            && tensor.is_contiguous()
            && tensor.layout().start_offset().is_multiple_of(8)
            && !tensor.track_op()
    };
    Ok(matches!(x.dtype(), DType::F16 | DType::BF16)
        && (1..=ROWS).contains(&rows)
        && inputs.is_multiple_of(TURN)
        && inputs > 0
        && projection.weight.dim(0)?.is_multiple_of(COLUMNS)
        && rank.is_multiple_of(RANKS)
        && (RANKS..=MOST_RANKS[1] as usize).contains(&rank)
        && tensors.into_iter().flatten().all(suits)
        && most_shared_bytes(device)? >= SHARED_BYTES)
}

/// The layer with its adapters, for what [`takes`] has let through; the slots are one for each row.
pub(super) fn linear(x: &Tensor, projection: &Projection, adapters: &Adapters<'_>) -> Result<Fresh> {
    let device: &CudaDevice = x.device().as_cuda_device()?;
    let ((rows, inputs), outputs) = (x.dims2()?, projection.weight.dim(0)?);
    let (slot_count, rank, _) = adapters.a.dims3()?;
    // SAFETY: the kernel writes every row.
    let y = unsafe { Fresh::uninitialized((rows, outputs), x.dtype(), x.device())? };
    let most = if rank as u32 <= MOST_RANKS[0] { MOST_RANKS[0] } else { MOST_RANKS[1] };
    let name = StructName { pass: "few_rows", float: Float::of(x)?, columns: Some(most) };
    let kernel = MODULE.kernel(device, name)?;
    let down_blocks = rows * rank / RANKS;
    let bias = projection.bias.as_ref();
    let given = [
        Argument::Read(x),
        Argument::Read(&projection.weight),
        bias.map_or(Argument::U32(0), Argument::Read),
        Argument::Write(&y),
        Argument::Read(adapters.a),
        Argument::Read(adapters.b),
        Argument::Read(adapters.scales),
        Argument::Read(adapters.slots),
        Argument::Update(&adapters.memory.down),
        Argument::Update(&adapters.memory.counters),
    ];
    with_addresses(device, "linear_with_adapters", &given, |addresses| {
        let &[x, weight, bias, y, a, b, scales, slots, down, counters] = addresses else {
            unreachable!("ten arguments have ten addresses");
        };
        let arguments = Arguments {
            x,
            weight,
            bias,
            y,
            a,
            b,
            scales,
            slots,
            down,
            counters,
            rows: rows as u32,
            inputs: u32::try_from(inputs)?,
            outputs: u32::try_from(outputs)?,
            rank: rank as u32,
            slot_count: u32::try_from(slot_count)?,
            down_blocks: down_blocks as u32,
        };
        // SAFETY: the struct is few_rows.cuh's; `takes` has checked sizes and alignment, the caller the shapes.
        unsafe { kernel.launch(device, [down_blocks + outputs / COLUMNS, 1, 1], arguments) }
    })?;
    Ok(y)
}
