//! Many adapters of one layer in two tensors: what a server keeps, and what one launch reads for a batch whose
//! rows have different adapters.

use candle_core::{DType, Device, Result, Tensor, bail};

use super::{LoraAdapter, LoraSegment, check, gpu, lora_in_place};
use crate::{
    device::runs_kernels,
    linear::{Projection, linear, rows},
    trace::{self, Work},
};

/// More rows than this are multiplied adapter by adapter.
const FEW_ROWS: usize = 64;

/// Adapters of one layer, padded with zeros to one rank; each has a slot.
#[derive(Debug, Clone)]
pub struct LoraStack {
    /// `[slots, r, K]`
    a: Tensor,
    /// `[slots, N, r]`
    b: Tensor,
    /// `[slots]` in f32.
    scales: Tensor,
    /// The same, for the host.
    host_scales: Vec<f32>,
    #[cfg(feature = "cuda")]
    memory: super::few_rows::Memory,
}

/// The slot of each row of a batch; rows without an adapter have none.
#[derive(Debug, Clone)]
pub struct RowSlots {
    host: Vec<Option<u32>>,
    /// `[M]` in u32; a number beyond all slots for rows without.
    device: Tensor,
}

impl LoraStack {
    /// Empty slots for adapters of up to this rank. Multiples of 8 are read fastest.
    pub fn new(
        slots: usize,
        rank: usize,
        (outputs, inputs): (usize, usize),
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        if rank > gpu::MOST_RANK {
            bail!("LoraStack: rank {rank} is above {}, the most that one launch handles", gpu::MOST_RANK);
        }
        Ok(Self {
            a: Tensor::zeros((slots, rank, inputs), dtype, device)?,
            b: Tensor::zeros((slots, outputs, rank), dtype, device)?,
            scales: Tensor::zeros(slots, DType::F32, device)?,
            host_scales: vec![0.; slots],
            #[cfg(feature = "cuda")]
            memory: super::few_rows::Memory::new(inputs, rank, device)?,
        })
    }

    /// Puts an adapter into a slot. Who holds a clone of this stack sees it too.
    pub fn set(&mut self, slot: usize, adapter: &LoraAdapter) -> Result<()> {
        let (slots, most, inputs) = self.a.dims3()?;
        let (outputs, rank) = (self.b.dim(1)?, adapter.rank());
        if slot >= slots {
            bail!("LoraStack: slot {slot} of {slots}");
        }
        if rank > most || adapter.a.dims() != [rank, inputs] || adapter.b.dims() != [outputs, rank] {
            let (a, b) = (adapter.a.dims(), adapter.b.dims());
            bail!(
                "LoraStack: A is {a:?} and B {b:?}, expected [r, {inputs}] and [{outputs}, r], r up to {most}"
            );
        }
        let fit = |factor: &Tensor, dimension| {
            let factor = factor.detach().to_device(self.a.device())?.to_dtype(self.a.dtype())?;
            factor.pad_with_zeros(dimension, 0, most - rank)?.contiguous()?.unsqueeze(0)
        };
        self.a.slice_set(&fit(&adapter.a, 0)?, 0, slot)?;
        self.b.slice_set(&fit(&adapter.b, 1)?, 0, slot)?;
        self.scales.slice_set(&Tensor::new(&[adapter.scale], self.a.device())?, 0, slot)?;
        self.host_scales[slot] = adapter.scale;
        Ok(())
    }

    /// The deltas of all rows that have a slot; each adapter in use is read once.
    fn work(&self, x: &Tensor, slots: &RowSlots) -> Work {
        let size = x.dtype().size_in_bytes() as u64;
        let per_slot = |tensor: &Tensor| (tensor.elem_count() / tensor.dims()[0].max(1)) as u64;
        let (a, b) = (per_slot(&self.a), per_slot(&self.b));
        let (inputs, outputs) = (self.a.dims()[2] as u64, self.b.dims()[1] as u64);
        let mut used: Vec<u32> = slots.host.iter().copied().flatten().collect();
        let rows = used.len() as u64;
        used.sort_unstable();
        used.dedup();
        let adapters = used.len() as u64 * (a + b) * self.a.dtype().size_in_bytes() as u64;
        Work { bytes: adapters + rows * size * (inputs + 2 * outputs), flops: 2 * rows * (a + b) }
    }

    /// A view of one slot.
    fn adapter(&self, slot: u32) -> Result<LoraAdapter> {
        let slot = slot as usize;
        Ok(LoraAdapter { a: self.a.get(slot)?, b: self.b.get(slot)?, scale: self.host_scales[slot] })
    }
}

impl RowSlots {
    /// The slot of each row.
    pub fn new(slots: &[Option<u32>], device: &Device) -> Result<Self> {
        let numbers: Vec<u32> = slots.iter().map(|slot| slot.unwrap_or(u32::MAX)).collect();
        Ok(Self { host: slots.to_vec(), device: Tensor::from_vec(numbers, slots.len(), device)? })
    }
}

/// Adds to each row of `y [.., N]` the delta of the adapter in its slot. `y` is changed for everybody who holds
/// it. A few rows are one launch on a GPU, however many adapters they have.
pub fn lora_stacked_in_place(x: &Tensor, y: &Tensor, stack: &LoraStack, slots: &RowSlots) -> Result<()> {
    let _op = trace::op("lora_stacked_in_place", x.device(), || stack.work(x, slots));
    let count = slots.host.len();
    let ((_, _, inputs), outputs) = (stack.a.dims3()?, stack.b.dim(1)?);
    check_slots("lora_stacked_in_place", stack, slots)?;
    check("lora_stacked_in_place", x, y, &[])?;
    if x.dims().last() != Some(&inputs)
        || y.dims().last() != Some(&outputs)
        || x.elem_count() != count * inputs
    {
        let (x, y) = (x.dims(), y.dims());
        bail!(
            "lora_stacked_in_place: `x` is {x:?} and `y` {y:?}, expected {count} rows of {inputs} and of {outputs}"
        );
    }
    if runs_kernels(x.device()) && count <= FEW_ROWS && x.dtype() == stack.a.dtype() {
        super::check_changeable("lora_stacked_in_place", "y", y)?;
        let y = y.reshape((count, outputs))?;
        return gpu::lora_rows_in_place(&rows(x)?, &y, [&stack.a, &stack.b, &stack.scales], &slots.device);
    }
    let mut adapters = Vec::new();
    let mut start = 0;
    for run in slots.host.chunk_by(|left, right| left == right) {
        if let Some(slot) = run[0] {
            adapters.push((start..start + run.len(), stack.adapter(slot)?));
        }
        start += run.len();
    }
    let segments: Vec<LoraSegment<'_>> =
        adapters.iter().map(|(rows, adapter)| LoraSegment { rows: rows.clone(), adapter }).collect();
    lora_in_place(x, y, &segments)
}

/// [`linear`], and on each row the delta of the adapter in its slot. On NVIDIA GPUs from Hopper on it is one launch for up to 16
/// rows in f16 or bf16, if layer and stack have the type of `x`, K and N are multiples of 8, and so is the stack's rank, up to 64.
/// Everything else is `linear`, then [`lora_stacked_in_place`].
pub fn linear_with_adapters(
    x: &Tensor,
    projection: &Projection,
    stack: &LoraStack,
    slots: &RowSlots,
) -> Result<Tensor> {
    let _op = trace::op("linear_with_adapters", x.device(), || {
        Work::products(x, &[&projection.weight]).and_work(stack.work(x, slots))
    });
    #[cfg(feature = "cuda")]
    if let Some(y) = in_one_launch(x, projection, stack, slots)? {
        return Ok(y);
    }
    let y = linear(x, projection)?;
    lora_stacked_in_place(x, &y, stack, slots)?;
    Ok(y)
}

#[cfg(feature = "cuda")]
fn in_one_launch(
    x: &Tensor,
    projection: &Projection,
    stack: &LoraStack,
    slots: &RowSlots,
) -> Result<Option<Tensor>> {
    use super::few_rows;
    let ((_, _, inputs), outputs) = (stack.a.dims3()?, stack.b.dim(1)?);
    if x.dims().last() != Some(&inputs)
        || projection.weight.dims() != [outputs, inputs]
        || projection.bias.as_ref().is_some_and(|bias| bias.dims() != [outputs])
        || x.track_op()
    {
        return Ok(None); // the other way names what does not fit
    }
    check_slots("linear_with_adapters", stack, slots)?;
    let flat = rows(x)?;
    let LoraStack { a, b, scales, memory, .. } = stack;
    let adapters = few_rows::Adapters { a, b, scales, slots: &slots.device, memory };
    if flat.dim(0)? != slots.host.len() || !few_rows::takes(&flat, projection, &adapters)? {
        return Ok(None);
    }
    let mut y = few_rows::linear(&flat, projection, &adapters)?;
    y.shape = crate::linear::with_width(x, outputs).into();
    Ok(Some(y.into_tensor()))
}

fn check_slots(operation: &str, stack: &LoraStack, slots: &RowSlots) -> Result<()> {
    let held = stack.a.dim(0)?;
    if slots.host.iter().flatten().any(|&slot| slot as usize >= held) {
        bail!("{operation}: a row asks for a slot beyond the {held} of the stack");
    }
    Ok(())
}
