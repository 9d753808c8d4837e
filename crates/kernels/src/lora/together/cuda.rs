//! NVIDIA GPUs: adapters of low rank over many rows, with tensor cores, `lora/cuda/together.cuh` and
//! `together_back.cuh`.
//!
//! M: rows, K: inputs, N: a product's outputs, r: an adapter's rank. A block is eight ranks.

use candle_core::{CudaDevice, DType, Device, Result, Tensor};

use super::{LoraMember, LoraProjections, gpu};
use crate::{
    fresh::Fresh,
    gpu::{
        Argument, Float,
        cuda::{StructKernel, StructModule, StructName, most_shared_bytes, multiprocessors, with_addresses},
    },
    linear::rows,
    lora::{LoraAdapter, check_changeable},
};

static MODULE: StructModule =
    StructModule::new(include_bytes!(concat!(env!("OUT_DIR"), "/together_cuda.fatbin")));

/// As in together.cuh.
const MEMBERS: usize = 3;
const RANKS: usize = 8;
const MOST_RANK: usize = 16;
const TILE: usize = 16;
const STRIP: usize = 64;
/// What a block of the largest kernel needs.
const SHARED_BYTES: usize = 112 << 10;
/// Elements of an access of 16 bytes.
const ACCESS: usize = 8;
/// Rows from which on these kernels are faster than those for all GPUs.
const FEWEST_ROWS: usize = 128;
/// Tiles of each warp that are worth a part of the sums over all rows.
const FEWEST_PART_TILES: usize = 4;
/// Blocks of the kernels that a multiprocessor runs at a time.
const BLOCKS_PER_MULTIPROCESSOR: usize = 2;

/// As in together.cuh.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Member {
    a: u64,
    b: u64,
    y: u64,
    h: u64,
    g: u64,
    da: u64,
    db: u64,
    rank: u32,
    outputs: u32,
    scale: f32,
    unused: u32,
}

/// As in together.cuh.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Arguments {
    x: u64,
    dx: u64,
    members: [Member; MEMBERS],
    rows: u32,
    inputs: u32,
    count: u32,
    part_rows: u32,
}

/// What the kernels are given; [`NOTHING`] where one does not ask.
struct Call<'a> {
    device: &'a CudaDevice,
    adapters: &'a [&'a LoraAdapter],
    float: Float,
    rows: usize,
    inputs: usize,
    x: Argument<'a>,
    dx: Argument<'a>,
    /// y or dy of each adapter.
    products: [Argument<'a>; MEMBERS],
    /// `[M, 8 · blocks]` of each adapter, one behind the other.
    h: Argument<'a>,
    g: Argument<'a>,
    sums: Argument<'a>,
    parts: usize,
}

const NOTHING: Argument<'static> = Argument::U32(0);

/// `x · Aᵀ` of each adapter, `x [M, K]`; nothing where the kernels are not for this call.
pub(super) fn down(x: &Tensor, adapters: &[&LoraAdapter]) -> Result<Option<LoraProjections>> {
    let inputs: Vec<_> = [x].into_iter().chain(adapters.iter().map(|adapter| &adapter.a)).collect();
    let Some(device) = device_for(x, adapters, &inputs)? else { return Ok(None) };
    if !adapters.iter().all(|adapter| adapter.a.dims() == [adapter.rank(), x.dims()[1]]) {
        return Ok(None);
    }
    let (count, total) = (x.dim(0)?, adapters.iter().map(|adapter| blocks(adapter)).sum::<usize>());
    // SAFETY: the kernel writes every block of every row.
    let h = unsafe { Fresh::uninitialized(count * total * RANKS, x.dtype(), x.device())? };
    let call = Call { x: Argument::Read(x), h: Argument::Write(&h), ..Call::new(device, x, adapters)? };
    let kernel = call.kernel("together_pull", Some(total.next_multiple_of(2)))?;
    // SAFETY: `device_for` has checked dtypes, sizes and alignment; the shapes are checked above.
    unsafe { call.launch(&kernel, [count.div_ceil(kernel.rows as usize), 1, 1])? };
    projections(h.into_tensor(), count, adapters).map(Some)
}

/// Adds to each product `[M, N]`; says whether the kernels are for this call.
pub(super) fn up(
    projections: &LoraProjections,
    products: &[&Tensor],
    adapters: &[&LoraAdapter],
) -> Result<bool> {
    let (Some(h), Some(first)) = (&projections.blocks, products.first()) else { return Ok(false) };
    let inputs: Vec<_> =
        products.iter().copied().chain(adapters.iter().map(|adapter| &adapter.b)).chain([h]).collect();
    let Some(device) = device_for(first, adapters, &inputs)? else { return Ok(false) };
    let count = first.dim(0)?;
    let fits = |(y, adapter): (&&Tensor, &&LoraAdapter)| {
        y.dims() == [count, adapter.outputs()] && adapter.b.dims() == [adapter.outputs(), adapter.rank()]
    };
    if !products.iter().zip(adapters).all(fits) || !are_of(h, count, adapters) {
        return Ok(false);
    }
    for y in products {
        check_changeable("lora_up_together", "y", y)?;
    }
    let call = Call {
        products: each(products.iter().map(|y| Argument::Update(y))),
        h: Argument::Read(h),
        ..Call::new(device, first, adapters)?
    };
    let kernel = call.kernel("together_up", None)?;
    let strips: usize = products.iter().map(|y| y.dims()[1].div_ceil(STRIP)).sum();
    let warps = strips * count.div_ceil(kernel.rows as usize);
    // SAFETY: `device_for` has checked dtypes, sizes and alignment; the shapes are checked above.
    unsafe { call.launch(&kernel, [warps.div_ceil(kernel.threads as usize / 32), 1, 1])? };
    Ok(true)
}

/// Adds all gradients; says whether the kernels are for this call.
pub(super) fn backward(
    x: &Tensor,
    projections: &LoraProjections,
    members: &[LoraMember<'_>],
    dx: Option<&Tensor>,
) -> Result<bool> {
    let Some(h) = &projections.blocks else { return Ok(false) };
    let (x, adapters) = (rows(x)?, members.iter().map(|member| member.adapter).collect::<Vec<_>>());
    let d_products = members.iter().map(|member| rows(member.dy)).collect::<Result<Vec<_>>>()?;
    if dx.is_some_and(|dx| !dx.is_contiguous() || dx.track_op() || dx.elem_count() != x.elem_count()) {
        return Ok(false);
    }
    let dx = dx.map(|dx| dx.reshape(x.shape())).transpose()?;
    let factors = adapters.iter().flat_map(|adapter| [&adapter.a, &adapter.b]);
    let inputs: Vec<_> = [&x, h].into_iter().chain(&d_products).chain(&dx).chain(factors).collect();
    let Some(device) = device_for(&x, &adapters, &inputs)? else { return Ok(false) };
    let fit = members.iter().zip(&d_products).all(|(member, dy)| gpu::fits(member, &x, dy));
    if !fit || !are_of(h, x.dim(0)?, &adapters) {
        return Ok(false);
    }
    // SAFETY: the first kernel writes every block of every row.
    let g = unsafe { Fresh::uninitialized(h.elem_count(), x.dtype(), x.device())? }.into_tensor();
    let call = Call {
        x: Argument::Read(&x),
        dx: dx.as_ref().map_or(NOTHING, Argument::Update),
        products: each(d_products.iter().map(Argument::Read)),
        h: Argument::Read(h),
        g: Argument::Update(&g),
        ..Call::new(device, &x, &adapters)?
    };
    let most = adapters.iter().map(|adapter| blocks(adapter)).max();
    let kernel = call.kernel("together_through", most)?;
    // SAFETY: `device_for` has checked dtypes, sizes and alignment; `gpu::fits` the shapes.
    unsafe { call.launch(&kernel, [call.rows.div_ceil(kernel.rows as usize), 1, 1])? };
    outers(call, members)?;
    Ok(true)
}

/// Adds the gradients of all matrices.
fn outers(call: Call<'_>, members: &[LoraMember<'_>]) -> Result<()> {
    let total: usize = call.adapters.iter().map(|adapter| blocks(adapter)).sum();
    let kernel = call.kernel("together_outers", Some(total.next_multiple_of(2)))?;
    let outputs: Vec<_> = call.adapters.iter().map(|adapter| adapter.outputs()).collect();
    let strips = call.inputs.div_ceil(STRIP) + outputs.iter().map(|n| n.div_ceil(STRIP)).sum::<usize>();
    // The warps of a block that do not share a strip have strips of their own.
    let groups = strips.div_ceil(kernel.threads as usize / 32 * TILE / kernel.rows as usize);
    let wanted = (BLOCKS_PER_MULTIPROCESSOR * multiprocessors(call.device)? / groups).max(1);
    let fewest = FEWEST_PART_TILES * kernel.rows as usize;
    let part_rows = call.rows.div_ceil(wanted).max(fewest).next_multiple_of(TILE);
    let parts = call.rows.div_ceil(part_rows);
    let ranks = call.adapters.iter().map(|adapter| adapter.rank());
    let elements: usize = ranks.zip(&outputs).map(|(rank, outputs)| rank * (call.inputs + outputs)).sum();
    let device = Device::Cuda(call.device.clone());
    // SAFETY: the kernel writes every column of every rank of every part.
    let sums = unsafe { Fresh::uninitialized(parts * elements, DType::F32, &device)? };
    let inputs = call.inputs;
    let call = Call { dx: NOTHING, sums: Argument::Write(&sums), parts, ..call };
    // SAFETY: as the caller's launch, and `sums` has room for all parts.
    unsafe { call.launch_in_parts(&kernel, [groups, parts, 1], part_rows)? };
    gpu::sum_outers(&sums.into_tensor(), parts, inputs, &outputs, members)
}

impl<'a> Call<'a> {
    /// For `rows [M, _]`, without any tensor yet but the adapters'.
    fn new(device: &'a CudaDevice, rows: &Tensor, adapters: &'a [&'a LoraAdapter]) -> Result<Self> {
        Ok(Self {
            device,
            adapters,
            float: Float::of(rows)?,
            rows: rows.dim(0)?,
            inputs: adapters[0].a.dim(1)?,
            x: NOTHING,
            dx: NOTHING,
            products: [NOTHING; MEMBERS],
            h: NOTHING,
            g: NOTHING,
            sums: NOTHING,
            parts: 0,
        })
    }

    fn kernel(&self, pass: &'static str, blocks: Option<usize>) -> Result<StructKernel> {
        let columns = blocks.map(|blocks| blocks as u32);
        MODULE.kernel(self.device, StructName { pass, float: self.float, columns })
    }

    /// # Safety
    /// What the kernel asks for is there, of this call's float type, of the shapes that together.cuh gives, and begins at a
    /// multiple of 16 bytes; the grid is the kernel's for these shapes.
    unsafe fn launch(&self, kernel: &StructKernel, grid: [usize; 3]) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.launch_in_parts(kernel, grid, 0) }
    }

    /// # Safety
    /// As [`launch`](Self::launch); `part_rows` are whole tiles.
    unsafe fn launch_in_parts(
        &self,
        kernel: &StructKernel,
        grid: [usize; 3],
        part_rows: usize,
    ) -> Result<()> {
        let factors = self.adapters.iter().flat_map(|of| [Argument::Read(&of.a), Argument::Read(&of.b)]);
        let given = [self.x, self.dx, self.h, self.g, self.sums].into_iter().chain(factors);
        let given: Vec<_> = given.chain(self.products).collect();
        with_addresses(self.device, "lora_together", &given, |addresses| {
            let (&[x, dx, h, g, sums], rest) = addresses.split_first_chunk::<5>().expect("five come first");
            let (factors, products) = rest.split_at(2 * self.adapters.len());
            let arguments = Arguments {
                x,
                dx,
                members: self.members([h, g, sums], factors, products),
                rows: u32::try_from(self.rows)?,
                inputs: u32::try_from(self.inputs)?,
                count: self.adapters.len() as u32,
                part_rows: u32::try_from(part_rows)?,
            };
            // SAFETY: the struct is together.cuh's; the rest is the caller's promise.
            unsafe { kernel.launch(self.device, grid, arguments) }
        })
    }

    /// Where each member's part of what all share begins; an address stays 0 where nothing is shared.
    fn members(&self, shared: [u64; 3], factors: &[u64], products: &[u64]) -> [Member; MEMBERS] {
        let mut members = [Member::default(); MEMBERS];
        let [mut h, mut g, mut da] = shared;
        let behind = |from: u64, bytes: usize| if from == 0 { 0 } else { from + bytes as u64 };
        for (number, (member, adapter)) in members.iter_mut().zip(self.adapters).enumerate() {
            let (rank, outputs) = (adapter.rank(), adapter.outputs());
            let (half, single) = (self.float.dtype().size_in_bytes(), DType::F32.size_in_bytes());
            let db = behind(da, single * self.parts * rank * self.inputs);
            *member = Member {
                a: factors[2 * number],
                b: factors[2 * number + 1],
                y: products[number],
                h,
                g,
                da,
                db,
                rank: rank as u32,
                outputs: outputs as u32,
                scale: adapter.scale,
                unused: 0,
            };
            [h, g] = [h, g].map(|from| behind(from, half * self.rows * blocks(adapter) * RANKS));
            da = behind(db, single * self.parts * rank * outputs);
        }
        members
    }
}

/// The GPU, where the kernels are for these adapters and for rows like those of `inputs`.
fn device_for<'a>(
    like: &'a Tensor,
    adapters: &[&LoraAdapter],
    inputs: &[&Tensor],
) -> Result<Option<&'a CudaDevice>> {
    let Device::Cuda(device) = like.device() else { return Ok(None) };
    let is_ready = |tensor: &&Tensor| {
        tensor.dtype() == like.dtype()
            && tensor.is_contiguous()
            && tensor.layout().start_offset().is_multiple_of(ACCESS)
    };
    let suits = |adapter: &&LoraAdapter| {
        let is_whole = |width: usize| width > 0 && width.is_multiple_of(ACCESS);
        let inputs = adapter.a.dims().last().copied().unwrap_or(0);
        (1..=MOST_RANK).contains(&adapter.rank()) && is_whole(inputs) && is_whole(adapter.outputs())
    };
    let is_for = matches!(like.dtype(), DType::F16 | DType::BF16)
        && (1..=MEMBERS).contains(&adapters.len())
        && like.dims().len() == 2
        && like.dim(0)? >= FEWEST_ROWS
        && adapters.iter().all(suits)
        && inputs.iter().all(is_ready)
        && most_shared_bytes(device)? >= SHARED_BYTES;
    Ok(is_for.then_some(device))
}

/// Of each member; nothing of one that is not there.
fn each<'a>(mut arguments: impl Iterator<Item = Argument<'a>>) -> [Argument<'a>; MEMBERS] {
    std::array::from_fn(|_| arguments.next().unwrap_or(NOTHING))
}

/// Of eight ranks each.
fn blocks(adapter: &LoraAdapter) -> usize {
    adapter.rank().div_ceil(RANKS)
}

/// Whether these are the projections of so many rows.
fn are_of(h: &Tensor, rows: usize, adapters: &[&LoraAdapter]) -> bool {
    h.elem_count() == rows * RANKS * adapters.iter().map(|adapter| blocks(adapter)).sum::<usize>()
}

/// Views without what stands behind the ranks.
fn projections(h: Tensor, rows: usize, adapters: &[&LoraAdapter]) -> Result<LoraProjections> {
    let mut first = 0;
    let place = |adapter: &&LoraAdapter| {
        let width = blocks(adapter) * RANKS;
        first += rows * width;
        let padded = h.narrow(0, first - rows * width, rows * width)?.reshape((rows, width))?;
        padded.narrow(1, 0, adapter.rank())
    };
    Ok(LoraProjections {
        each: adapters.iter().map(place).collect::<Result<_>>()?,
        all: None,
        blocks: Some(h),
    })
}
