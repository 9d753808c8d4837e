//! The GPU implementation. Few rows with adapters of their own are one launch. Many rows are products of the
//! device's library, and kernels where it would round sums or write what is then only added.

use candle_core::{DType, Result, Tensor};

use super::{LoraAdapter, LoraGradients, LoraSegment};
use crate::{
    fresh::Fresh,
    gpu::{Argument, Flat, Kernel, Launch, Module, Variant, launch, module},
    matmul::{Right, matmul, matmul_add},
};

pub(super) static MODULE: Module = module!("lora");
static ROWS: Kernel = Kernel::new(&MODULE, "lora_rows");
static ADD: Kernel = Kernel::new(&MODULE, "add_scaled");
static OUTER: Kernel = Kernel::new(&MODULE, "lora_outer");
static SUM: Kernel = Kernel::new(&MODULE, "lora_sum_parts");

/// `MOST_RANK` in kernels.gpu.
pub(super) const MOST_RANK: usize = 256;

/// Threads of a group of `lora_rows`.
const ROW_THREADS: usize = 512;
/// Groups of `lora_rows` that run at the same time on a large GPU.
const ROW_GROUPS: usize = 264;

/// Warps of a group of `lora_outer`, and the ranks that one of its threads sums (`WARPS`, `RANKS` in kernels.gpu).
pub(super) const WARPS: usize = 8;
pub(super) const RANKS: usize = 8;
/// Warps of a group of `lora_sum_parts`: each sums some of the parts (`SUM_WARPS` in kernels.gpu).
pub(super) const SUM_WARPS: usize = 8;
/// Groups of `lora_outer` that fill a large GPU, and the fewest rows that are worth a group.
pub(super) const OUTER_GROUPS: usize = 264;
pub(super) const FEWEST_ROWS: usize = 64;

/// One launch: `y[row] += scale · B · (A · x[row])` with the adapter in the row's slot.
pub(super) fn lora_rows_in_place(x: &Tensor, y: &Tensor, stack: [&Tensor; 3], slots: &Tensor) -> Result<()> {
    let ((rows, inputs), outputs) = (x.dims2()?, y.dim(1)?);
    let [a, b, scales] = stack;
    let (held, rank, _) = a.dims3()?;
    let [along_inputs, along_rank] = [Variant::for_rows(&[x, a], inputs)?, Variant::for_rows(&[b], rank)?];
    let variant = if along_inputs.lanes() == 1 { along_inputs } else { along_rank };
    // Each group projects for itself: reading A again, from the second-level cache, costs less than a second
    // launch as long as a group's share of B is not much smaller than A.
    let most = (ROW_GROUPS / rows.max(1)).max(1);
    let tiles = (4 * outputs).div_ceil(inputs.max(1)).clamp(2.min(most), most);
    let columns = outputs.div_ceil(tiles).next_multiple_of(32);
    let started = Launch {
        kernel: &ROWS,
        variant,
        groups: [outputs.div_ceil(columns), rows, 1],
        threads: ROW_THREADS,
        arguments: &[
            Argument::Read(x),
            Argument::Update(y),
            Argument::Read(a),
            Argument::Read(b),
            Argument::Read(scales),
            Argument::Read(slots),
            Argument::U32(u32::try_from(inputs)?),
            Argument::U32(u32::try_from(outputs)?),
            Argument::U32(u32::try_from(rank)?),
            Argument::U32(u32::try_from(held)?),
            Argument::U32(u32::try_from(columns)?),
        ],
    };
    // SAFETY: as `lora_rows` in kernels.gpu asks; the caller has checked the shapes and the rank.
    unsafe { launch(x.device(), &started) }
}

pub(super) fn lora_in_place(x: &Tensor, y: &Tensor, segments: &[LoraSegment<'_>]) -> Result<()> {
    for LoraSegment { rows, adapter } in segments {
        let x = x.narrow(0, rows.start, rows.len())?;
        let y = y.narrow(0, rows.start, rows.len())?;
        lora_up_in_place(&lora_down(&x, adapter)?.into_tensor(), &y, adapter)?;
    }
    Ok(())
}

pub(super) fn lora_down(x: &Tensor, adapter: &LoraAdapter) -> Result<Fresh> {
    matmul(x, &adapter.a.detach().to_dtype(x.dtype())?.t()?)
}

pub(super) fn lora_delta(x: &Tensor, adapter: &LoraAdapter) -> Result<Fresh> {
    crate::trace::launched(1);
    let projected = (lora_down(x, adapter)?.into_tensor() * f64::from(adapter.scale))?;
    matmul(&projected, &adapter.b.detach().to_dtype(x.dtype())?.t()?)
}

pub(super) fn lora_up_in_place(projected: &Tensor, y: &Tensor, adapter: &LoraAdapter) -> Result<()> {
    let b = adapter.b.detach().to_dtype(y.dtype())?.contiguous()?;
    if matmul_add(projected, Right::Transposed(&b), adapter.scale, y)? {
        return Ok(());
    }
    add_scaled(y, &matmul(projected, &b.t()?)?.into_tensor(), adapter.scale)
}

pub(super) fn lora_backward(
    x: &Tensor,
    dy: &Tensor,
    adapter: &LoraAdapter,
    projected: &Tensor,
    into: &LoraGradients<'_>,
) -> Result<()> {
    let scale = adapter.scale;
    let g = matmul(dy, &adapter.b.detach().to_dtype(dy.dtype())?)?.into_tensor();
    if let Some(dx) = into.dx {
        let a = adapter.a.detach().to_dtype(dy.dtype())?.contiguous()?;
        if !matmul_add(&g, Right::AsIs(&a), scale, dx)? {
            add_scaled(dx, &matmul(&g, &a)?.into_tensor(), scale)?;
        }
    }
    add_outer(&g, x, scale, into.da, false)?;
    add_outer(projected, dy, scale, into.db, true)
}

/// `y += scale · delta`
fn add_scaled(y: &Tensor, delta: &Tensor, scale: f32) -> Result<()> {
    let flat = Flat::of(&[y, delta])?;
    let arguments =
        [Argument::Update(y), Argument::Read(delta), Argument::U32(flat.count), Argument::F32(scale)];
    // SAFETY: as `add_scaled` in kernels.gpu asks: tensors of one shape and dtype.
    unsafe { launch(y.device(), &flat.launch(&ADD, &arguments)) }
}

/// `to += scale · leftᵀ [r, M] · right [M, width]` in f32, or the transpose of that.
fn add_outer(left: &Tensor, right: &Tensor, scale: f32, to: &Tensor, transposed: bool) -> Result<()> {
    let ((rows, rank), width, device) = (left.dims2()?, right.dim(1)?, right.device());
    let variant = Variant::for_rows(&[right], width)?;
    let columns = 32 * variant.lanes();
    let [tiles, blocks] = [width.div_ceil(columns), rank.div_ceil(RANKS)];
    let wanted = (OUTER_GROUPS / (tiles * blocks).max(1)).max(1);
    let part_rows = rows.div_ceil(wanted).max(FEWEST_ROWS).next_multiple_of(WARPS);
    let parts = rows.div_ceil(part_rows);
    // A row of `left` is read as whole vectors where all its blocks are whole.
    let whole = rank.is_multiple_of(RANKS) && left.layout().start_offset().is_multiple_of(RANKS);
    // SAFETY: the kernel writes every column of every rank of every part.
    let sums = unsafe { Fresh::uninitialized((parts, rank, width), DType::F32, device)? };
    let multiplied = Launch {
        kernel: &OUTER,
        variant,
        groups: [tiles, blocks, parts],
        threads: 32 * WARPS,
        arguments: &[
            Argument::Read(left),
            Argument::Read(right),
            Argument::Write(&sums),
            Argument::U32(u32::try_from(rows)?),
            Argument::U32(u32::try_from(rank)?),
            Argument::U32(u32::try_from(width)?),
            Argument::U32(u32::try_from(part_rows)?),
            Argument::U32(whole.into()),
        ],
    };
    // SAFETY: as `lora_outer` in kernels.gpu asks: `left [rows, rank]` and `right [rows, width]`.
    unsafe { launch(device, &multiplied)? };
    sum_parts(&sums.into_tensor(), scale, to, transposed)
}

/// `to += scale · Σ sums [parts, r, width]`, or the transpose of that.
fn sum_parts(sums: &Tensor, scale: f32, to: &Tensor, transposed: bool) -> Result<()> {
    let (parts, rank, width) = sums.dims3()?;
    let summed = Launch {
        kernel: &SUM,
        variant: Variant::Plain,
        groups: [(rank * width).div_ceil(32), 1, 1],
        threads: 32 * SUM_WARPS,
        arguments: &[
            Argument::Read(sums),
            Argument::Update(to),
            Argument::U32(u32::try_from(parts)?),
            Argument::U32(u32::try_from(rank)?),
            Argument::U32(u32::try_from(width)?),
            Argument::F32(scale),
            Argument::U32(transposed.into()),
        ],
    };
    // SAFETY: as `lora_sum_parts` in kernels.gpu asks: `to` is `[rank, width]` or its transpose, in f32.
    unsafe { launch(to.device(), &summed) }
}
