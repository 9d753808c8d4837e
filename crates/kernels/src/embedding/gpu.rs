//! The GPU implementation.

use candle_core::{DType, Result, Tensor};

use super::Used;
use crate::{
    fresh::Fresh,
    gpu::{Argument, Kernel, Launch, Module, Variant, launch, module},
};

static MODULE: Module = module!("embedding");
static EMBEDDING: Kernel = Kernel::new(&MODULE, "embedding");
static BACKWARD: Kernel = Kernel::new(&MODULE, "embedding_backward");

const THREADS: usize = 256;

/// In the table's type.
pub(super) fn embedding(table: &Tensor, ids: &[u32], scale: f32) -> Result<Fresh> {
    let (_vocabulary, width) = table.dims2()?;
    let variant = Variant::for_rows(&[table], width)?;
    let accesses = width / variant.lanes();
    let count = ids.len() * accesses;
    let ids = Tensor::new(ids, table.device())?;
    // SAFETY: the kernel writes every row.
    let y = unsafe { Fresh::uninitialized((ids.elem_count(), width), table.dtype(), table.device())? };
    let launch_of_accesses = Launch {
        kernel: &EMBEDDING,
        variant,
        groups: [count.div_ceil(THREADS), 1, 1],
        threads: THREADS,
        arguments: &[
            Argument::Read(table),
            Argument::Read(&ids),
            Argument::Write(&y),
            Argument::U32(u32::try_from(count)?),
            Argument::U32(u32::try_from(accesses)?),
            Argument::F32(scale),
        ],
    };
    // SAFETY: as `embedding` in kernels.gpu asks; the ids were checked by the caller.
    unsafe { launch(table.device(), &launch_of_accesses)? };
    Ok(y)
}

/// Groups that a launch may have along its second dimension.
const MOST_GROUPS: usize = 65_535;

pub(super) fn backward(used: &Used, dy: &Tensor, vocabulary: usize, scale: f32) -> Result<Tensor> {
    let (_rows, width) = dy.dims2()?;
    let device = dy.device();
    let variant = Variant::for_rows(&[dy], width)?;
    let accesses = width / variant.lanes();
    let gradient = Tensor::zeros((vocabulary, width), DType::F32, device)?;
    let threads = accesses.next_multiple_of(32).clamp(32, THREADS);
    let order = Tensor::new(used.order.as_slice(), device)?;
    for ids in used.ids.chunks(MOST_GROUPS) {
        let places: Vec<u32> = ids.iter().flat_map(|used| [used.id, used.first]).collect();
        let end = ids.last().map_or(0, |used| used.end);
        let places = Tensor::new([places, vec![0, end]].concat().as_slice(), device)?;
        let launch_of_ids = Launch {
            kernel: &BACKWARD,
            variant,
            groups: [accesses.div_ceil(threads), ids.len(), 1],
            threads,
            arguments: &[
                Argument::Read(dy),
                Argument::Read(&places),
                Argument::Read(&order),
                Argument::Update(&gradient),
                Argument::U32(u32::try_from(accesses)?),
                Argument::F32(scale),
            ],
        };
        // SAFETY: as `embedding_backward` in kernels.gpu asks; the ids were checked by the caller.
        unsafe { launch(device, &launch_of_ids)? };
    }
    Ok(gradient)
}
