//! NVIDIA GPUs from Hopper on: a dense layer for few rows and their adapters in one launch, `lora/cuda/few_rows.cuh`.

use candle_core::{
    CudaDevice, DType, Device, Result, Tensor, bail,
    cuda_backend::cudarc::driver::sys::{
        CUtensorMap, CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave,
        CUtensorMapL2promotion, CUtensorMapSwizzle, cuTensorMapEncodeTiled,
    },
};

use crate::{
    fresh::Fresh,
    gpu::{
        Argument, Float,
        cuda::{StructKernel, StructModule, StructName, is_hopper, multiprocessors, with_addresses},
    },
    linear::Projection,
};

static MODULE: StructModule =
    StructModule::new(include_bytes!(concat!(env!("OUT_DIR"), "/few_rows_cuda.fatbin")));

/// As in few_rows.cuh.
const ROWS: usize = 16;
const RANKS: usize = 8;
/// Warps that finish, and one that loads.
const OTHER_WARPS: usize = 8 + 1;
const WARP: usize = 32;
/// Inputs that a warp takes at a time for x Aᵀ.
const SLICE: usize = 256;
/// Inputs of a box, its bytes for each row, and the boxes of a stage.
const BOX: usize = 64;
const LINE: usize = 128;
const BOXES: usize = 4;
/// A kernel for blocks of up to so many outputs: the outputs of a group of warps, and the group's warps.
const SHAPES: [Shape; 3] = [
    Shape { most_columns: 24, columns: 8, parts: 4 },
    Shape { most_columns: 56, columns: 8, parts: 2 },
    Shape { most_columns: 112, columns: 16, parts: 1 },
];
/// Ranks whose x Aᵀ has its place in shared memory.
const MOST_RANK: usize = 64;
/// More stages would not bring more under way.
const MOST_STAGES: usize = 32;
/// The stages begin at a multiple of it.
const STAGE_ALIGNMENT: usize = 1024;

/// What the blocks of a launch tell each other. Launches that share it must follow one another, as those of a device do.
#[derive(Debug, Clone)]
pub(super) struct Memory {
    /// `[slices, ROWS, r]`
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
#[repr(C, align(128))]
#[derive(Clone, Copy)]
struct Arguments {
    weight_map: [u64; 16],
    x_map: [u64; 16],
    x: u64,
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
    columns: u32,
    stages: u32,
}

/// As in few_rows.cuh.
struct Shape {
    most_columns: usize,
    columns: usize,
    parts: usize,
}

/// How a launch shares out the outputs.
struct Plan {
    kernel: StructKernel,
    /// Outputs of a block.
    columns: usize,
    stages: usize,
}

impl Memory {
    pub(super) fn new(inputs: usize, rank: usize, device: &Device) -> Result<Self> {
        let down = Tensor::zeros((inputs.div_ceil(SLICE), ROWS, rank), DType::F32, device)?;
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
        && inputs.is_multiple_of(8)
        && inputs > 0
        && projection.weight.dim(0)?.is_multiple_of(8)
        && rank.is_multiple_of(RANKS)
        && (RANKS..=MOST_RANK).contains(&rank)
        && tensors.into_iter().flatten().all(suits)
        && is_hopper(device)?)
}

/// The layer with its adapters, for what [`takes`] has let through; the slots are one for each row.
pub(super) fn linear(x: &Tensor, projection: &Projection, adapters: &Adapters<'_>) -> Result<Fresh> {
    let device: &CudaDevice = x.device().as_cuda_device()?;
    let ((rows, inputs), outputs) = (x.dims2()?, projection.weight.dim(0)?);
    let (slot_count, rank, _) = adapters.a.dims3()?;
    // SAFETY: the kernel writes every row.
    let y = unsafe { Fresh::uninitialized((rows, outputs), x.dtype(), x.device())? };
    let plan = Plan::new(device, Float::of(x)?, outputs, rank)?;
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
        let &[x_at, weight, bias, y, a, b, scales, slots, down, counters] = addresses else {
            unreachable!("ten arguments have ten addresses");
        };
        let arguments = Arguments {
            weight_map: tensor_map(x.dtype(), weight, (outputs, inputs), plan.columns)?,
            x_map: tensor_map(x.dtype(), x_at, (rows, inputs), ROWS)?,
            x: x_at,
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
            columns: plan.columns as u32,
            stages: plan.stages as u32,
        };
        let grid = [outputs.div_ceil(plan.columns), 1, 1];
        // SAFETY: the struct is few_rows.cuh's; `takes` has checked sizes and alignment, the caller the shapes.
        unsafe { plan.kernel.launch(device, grid, arguments) }
    })?;
    Ok(y)
}

impl Plan {
    /// An even share of the outputs for each multiprocessor, or of half or a third of them and so on, where its sums would not fit.
    fn new(device: &CudaDevice, float: Float, outputs: usize, rank: usize) -> Result<Self> {
        let (homes, most) = (multiprocessors(device)?, SHAPES[SHAPES.len() - 1].most_columns);
        let rounds = outputs.div_ceil(homes * most);
        let wanted = outputs.div_ceil(homes * rounds).next_multiple_of(8);
        let shape = SHAPES.iter().find(|shape| wanted <= shape.most_columns).expect("nobody wants more");
        let columns = wanted.next_multiple_of(shape.columns);
        let name = StructName { pass: "few_rows", float, columns: Some(shape.most_columns as u32) };
        let mut kernel = MODULE.kernel(device, name)?;
        // `Plan` of few_rows.cuh: each part's sums, x Aᵀ and a barrier for the sums, and for each stage its boxes and two barriers.
        let fixed = STAGE_ALIGNMENT + shape.parts * ROWS * columns * 4 + ROWS * rank * 4 + 8;
        let stage = BOXES * (ROWS + columns) * LINE + 16;
        let stages = ((kernel.shared_bytes as usize - fixed) / stage).min(MOST_STAGES);
        kernel.threads = (WARP * (columns / shape.columns * shape.parts + OTHER_WARPS)) as u32;
        kernel.shared_bytes = (fixed + stages * stage) as u32;
        Ok(Self { kernel, columns, stages })
    }
}

/// How the copy engine finds boxes of so many rows of a matrix.
fn tensor_map(
    dtype: DType,
    address: u64,
    (rows, inputs): (usize, usize),
    box_rows: usize,
) -> Result<[u64; 16]> {
    let dtype = match dtype {
        DType::F16 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        _ => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
    };
    let mut map = CUtensorMap { opaque: [0; 16] };
    let (sizes, row_bytes) = ([inputs as u64, rows as u64], [2 * inputs as u64]);
    let (of_box, steps) = ([BOX as u32, box_rows as u32], [1, 1]);
    // SAFETY: two dimensions, as all the arrays have; nothing is read at the address.
    let encoded = unsafe {
        cuTensorMapEncodeTiled(
            &raw mut map,
            dtype,
            2,
            address as *mut _,
            sizes.as_ptr(),
            row_bytes.as_ptr(),
            of_box.as_ptr(),
            steps.as_ptr(),
            CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    if let Err(error) = encoded.result() {
        bail!("linear_with_adapters: the driver refuses a map of [{rows}, {inputs}]: {error}");
    }
    Ok(map.opaque)
}
