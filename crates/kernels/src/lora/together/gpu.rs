//! The GPU implementation for adapters of low rank. Larger ones are products for the device's library, one by one.

use candle_core::{DType, Result, Tensor};

use super::{LoraMember, LoraProjections};
use crate::{
    fresh::Fresh,
    gpu::{Argument, Kernel, Launch, Variant, launch},
    linear::rows,
    lora::gpu::{FEWEST_ROWS, MODULE, OUTER_GROUPS, RANKS, SUM_WARPS, WARPS},
};

static PULL: Kernel = Kernel::new(&MODULE, "lora_pull");
static PUSH: Kernel = Kernel::new(&MODULE, "lora_push");
static OUTERS: Kernel = Kernel::new(&MODULE, "lora_outers");
static SUM_OUTERS: Kernel = Kernel::new(&MODULE, "lora_sum_outers");

/// Adapters that a kernel has parameters for.
const MEMBERS: usize = 3;
/// `ROWS` in kernels.gpu.
const ROWS: usize = 4;
/// Threads of a group of `lora_pull` and `lora_push`.
const THREADS: usize = 128;
/// From here on, tensor cores gain more than fewer passes.
const MOST_RANK: usize = 16;

/// Whether these kernels are for adapters with such a factor each, whose rank is dimension `rank`.
pub(super) fn is_for(inputs: &[&Tensor], factors: &[&Tensor], rank: usize) -> bool {
    let is_ready = |tensor: &&Tensor| {
        tensor.is_contiguous()
            && tensor.layout().start_offset().is_multiple_of(RANKS)
            && tensor.dtype() == inputs[0].dtype()
    };
    let is_low =
        |factor: &&Tensor| factor.dims().get(rank).is_some_and(|&rank| (1..=MOST_RANK).contains(&rank));
    (1..=MEMBERS).contains(&factors.len())
        && inputs[0].elem_count() > 0
        && factors.iter().all(is_low)
        && factors.iter().chain(inputs).all(is_ready)
}

/// `x · Aᵀ [M, r]` for each pair of `x [M, K]` and `A [r, K]`, or `[K, r]` where it is `turned`.
pub(super) fn pull(inputs: &[&Tensor], factors: &[&Tensor], turned: bool) -> Result<LoraProjections> {
    let (count, device) = (inputs[0].dim(0)?, inputs[0].device());
    let ranks = each(factors, |factor| factor.dim(usize::from(turned)))?;
    let widths = each(inputs, |x| x.dim(1))?;
    let total: usize = ranks.iter().sum();
    // SAFETY: the kernel writes every rank of every row.
    let down = unsafe { Fresh::uninitialized(count * total, inputs[0].dtype(), device)? };
    let blocks: usize = ranks.iter().map(|rank| rank.div_ceil(RANKS)).sum();
    let [x, a] = [inputs, factors].map(|tensors| padded(tensors).map(Argument::Read));
    let [widths, ranks] = [widths, ranks].map(|sizes| sizes.map(|size| Argument::U32(size as u32)));
    let pulled = Launch {
        kernel: &PULL,
        variant: variant(inputs.iter().chain(factors), &widths_of(inputs)?)?,
        groups: [count.div_ceil(THREADS / 32 * ROWS), blocks, 1],
        threads: THREADS,
        arguments: &[
            x.as_slice(),
            &a,
            &[Argument::Write(&down), Argument::U32(u32::try_from(count)?)],
            &widths,
            &ranks,
            &[Argument::U32(turned.into())],
        ]
        .concat(),
    };
    // SAFETY: as `lora_pull` in kernels.gpu asks: a missing member has rank 0.
    unsafe { launch(device, &pulled)? };
    let sizes = factors.iter().map(|factor| Ok((count, factor.dim(usize::from(turned))?)));
    LoraProjections::over(down.into_tensor(), sizes)
}

/// `y [M, N] += scale · projected · factor` for each factor `[r, N]`, or `[N, r]` where it is `turned`. `projected`: what
/// [`pull`] gave for each, one behind the other.
pub(super) fn push(y: &Tensor, projected: &Tensor, factors: &[(&Tensor, f32)], turned: bool) -> Result<()> {
    let (count, width) = y.dims2()?;
    let tensors: Vec<_> = factors.iter().map(|(factor, _)| *factor).collect();
    let ranks = each(&tensors, |factor| factor.dim(usize::from(turned)))?;
    let variant = variant(tensors.iter().chain([&y]), &[width])?;
    let mut scales = [Argument::F32(0.0); MEMBERS];
    factors.iter().zip(&mut scales).for_each(|((_, scale), place)| *place = Argument::F32(*scale));
    let pushed = Launch {
        kernel: &PUSH,
        variant,
        groups: [width.div_ceil(32 * variant.lanes()), count.div_ceil(THREADS / 32 * ROWS), 1],
        threads: THREADS,
        arguments: &[
            [Argument::Update(y), Argument::Read(projected)].as_slice(),
            &padded(&tensors).map(Argument::Read),
            &[Argument::U32(u32::try_from(count)?), Argument::U32(u32::try_from(width)?)],
            &ranks.map(|rank| Argument::U32(rank as u32)),
            &scales,
            &[Argument::U32(turned.into())],
        ]
        .concat(),
    };
    // SAFETY: as `lora_push` in kernels.gpu asks: the projections lie one behind the other, a missing member has rank 0.
    unsafe { launch(y.device(), &pushed) }
}

/// Says whether it could; what does not fit is for others to name. `projected`: all of them.
pub(super) fn backward(
    x: &Tensor,
    projected: &Tensor,
    members: &[LoraMember<'_>],
    dx: Option<&Tensor>,
) -> Result<bool> {
    let x = rows(x)?;
    let d_products = members.iter().map(|member| rows(member.dy)).collect::<Result<Vec<_>>>()?;
    let gradients: Vec<_> = d_products.iter().collect();
    let a: Vec<_> = members.iter().map(|member| &member.adapter.a).collect();
    let b: Vec<_> = members.iter().map(|member| &member.adapter.b).collect();
    let dx = dx.map(|dx| dx.reshape(x.shape())).transpose()?;
    let inputs: Vec<_> = [&x].into_iter().chain(gradients.iter().copied()).chain(&dx).collect();
    let ranks: usize = members.iter().map(|member| member.adapter.rank()).sum();
    let fits = members.iter().zip(&gradients).all(|(member, dy)| fits(member, &x, dy));
    if !fits
        || !is_for(&inputs, &a, 0)
        || !is_for(&inputs, &b, 1)
        || projected.elem_count() != x.dim(0)? * ranks
        || dx.as_ref().is_some_and(Tensor::track_op)
    {
        return Ok(false);
    }
    let through = pull(&gradients, &b, true)?.all.expect("made at once");
    if let Some(dx) = &dx {
        let factors: Vec<_> = a.iter().zip(members).map(|(a, member)| (*a, member.adapter.scale)).collect();
        push(dx, &through, &factors, false)?;
    }
    outers(&x, &gradients, &through, projected, members)?;
    Ok(true)
}

/// Whether a member's tensors have the shapes that belong to `x [M, K]` and `dy [M, N]`, and its sums can be changed.
pub(super) fn fits(member: &LoraMember<'_>, x: &Tensor, dy: &Tensor) -> bool {
    let LoraMember { adapter, da, db, .. } = member;
    [da, db].iter().all(|sum| sum.is_contiguous() && !sum.track_op() && sum.dtype() == DType::F32)
        && adapter.a.dims() == [adapter.rank(), x.dims()[1]]
        && adapter.b.dims() == [adapter.outputs(), adapter.rank()]
        && dy.dims() == [x.dims()[0], adapter.outputs()]
        && da.dims() == adapter.a.dims()
        && db.dims() == adapter.b.dims()
}

/// Adds the gradients of all matrices.
fn outers(
    x: &Tensor,
    gradients: &[&Tensor],
    through: &Tensor,
    projected: &Tensor,
    members: &[LoraMember<'_>],
) -> Result<()> {
    let ((count, inputs), device) = (x.dims2()?, x.device());
    let outputs = widths_of(gradients)?;
    let ranks: Vec<_> = members.iter().map(|member| member.adapter.rank()).collect();
    let widths = [&[inputs], outputs.as_slice()].concat();
    let variant = variant(gradients.iter().chain([&x]), &widths)?;
    let columns = 32 * variant.lanes();
    let tiles = widths.iter().map(|width| width.div_ceil(columns)).max().unwrap_or(1);
    let blocks = ranks.iter().map(|rank| rank.div_ceil(RANKS)).max().unwrap_or(1);
    let working: usize = outputs
        .iter()
        .zip(&ranks)
        .map(|(outputs, rank)| (inputs.div_ceil(columns) + outputs.div_ceil(columns)) * rank.div_ceil(RANKS))
        .sum();
    let wanted = (2 * OUTER_GROUPS / working.max(1)).max(1);
    let part_rows = count.div_ceil(wanted).max(FEWEST_ROWS).next_multiple_of(WARPS);
    let parts = count.div_ceil(part_rows);
    let elements: usize = outputs.iter().zip(&ranks).map(|(outputs, rank)| rank * (inputs + outputs)).sum();
    // SAFETY: the kernel writes every column of every rank of every part.
    let sums = unsafe { Fresh::uninitialized(parts * elements, DType::F32, device)? };
    let multiplied = Launch {
        kernel: &OUTERS,
        variant,
        groups: [tiles, blocks, 2 * members.len() * parts],
        threads: 32 * WARPS,
        arguments: &[
            [Argument::Read(through), Argument::Read(projected), Argument::Read(x)].as_slice(),
            &padded(gradients).map(Argument::Read),
            &[Argument::Write(&sums), Argument::U32(u32::try_from(count)?), number(inputs)],
            &sizes_of(&outputs, &ranks),
            &[number(part_rows), number(parts)],
        ]
        .concat(),
    };
    // SAFETY: as `lora_outers` in kernels.gpu asks: the projections and what goes through lie one behind the other.
    unsafe { launch(device, &multiplied)? };
    sum_outers(&sums.into_tensor(), parts, inputs, &outputs, members)
}

/// Adds `parts` sums of each gradient to it: those of the first A `[parts, r, K]`, of its B `[parts, r, N]`, of the next...
pub(super) fn sum_outers(
    sums: &Tensor,
    parts: usize,
    inputs: usize,
    outputs: &[usize],
    members: &[LoraMember<'_>],
) -> Result<()> {
    let ranks: Vec<_> = members.iter().map(|member| member.adapter.rank()).collect();
    // Who is not there is not reached; something stands in its place.
    let mut changed = [Argument::Update(sums); 2 * MEMBERS];
    let mut scales = [Argument::F32(0.0); MEMBERS];
    for (number, member) in members.iter().enumerate() {
        changed[2 * number] = Argument::Update(member.da);
        changed[2 * number + 1] = Argument::Update(member.db);
        scales[number] = Argument::F32(member.adapter.scale);
    }
    let largest =
        outputs.iter().zip(&ranks).map(|(outputs, rank)| rank * inputs.max(*outputs)).max().unwrap_or(0);
    let summed = Launch {
        kernel: &SUM_OUTERS,
        variant: Variant::Plain,
        groups: [largest.div_ceil(32), 2 * members.len(), 1],
        threads: 32 * SUM_WARPS,
        arguments: &[
            [Argument::Read(sums)].as_slice(),
            &changed,
            &[number(parts), number(inputs)],
            &sizes_of(outputs, &ranks),
            &scales,
        ]
        .concat(),
    };
    // SAFETY: as `lora_sum_outers` in kernels.gpu asks: the sums lie as `lora_outers` wrote them, the gradients have the shapes
    // of the matrices.
    unsafe { launch(sums.device(), &summed) }
}

fn number(size: usize) -> Argument<'static> {
    Argument::U32(size as u32)
}

/// Outputs of all members, then their ranks; 0 for who is not there.
fn sizes_of(outputs: &[usize], ranks: &[usize]) -> Vec<Argument<'static>> {
    let padded = |sizes: &[usize]| {
        std::array::from_fn::<_, MEMBERS, _>(|i| sizes.get(i).copied().map_or(number(0), number))
    };
    [padded(outputs), padded(ranks)].concat()
}

/// Vectors where every row of every tensor allows them.
fn variant<'a>(tensors: impl Iterator<Item = &'a &'a Tensor>, widths: &[usize]) -> Result<Variant> {
    let tensors: Vec<_> = tensors.copied().collect();
    let mut found = Variant::for_rows(&tensors, widths[0])?;
    for &width in &widths[1..] {
        let other = Variant::for_rows(&tensors, width)?;
        found = if other.lanes() == 1 { other } else { found };
    }
    Ok(found)
}

fn widths_of(tensors: &[&Tensor]) -> Result<Vec<usize>> {
    tensors.iter().map(|tensor| tensor.dim(1)).collect()
}

fn each(tensors: &[&Tensor], size: impl Fn(&Tensor) -> Result<usize>) -> Result<[usize; MEMBERS]> {
    let mut sizes = [0; MEMBERS];
    for (tensor, place) in tensors.iter().zip(&mut sizes) {
        *place = size(tensor)?;
    }
    Ok(sizes)
}

/// The first stands where there is none; it is not read.
fn padded<'a>(tensors: &[&'a Tensor]) -> [&'a Tensor; MEMBERS] {
    std::array::from_fn(|index| *tensors.get(index).unwrap_or(&tensors[0]))
}
