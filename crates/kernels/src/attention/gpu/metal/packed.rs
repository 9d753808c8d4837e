//! Packed sequences, forward and backward.

use candle_core::{DType, Result, Tensor};

use super::{BLOCK_ROWS, MODULE, Sized, sized};
use crate::{
    attention::{
        PackedAttention,
        gpu::call::{Shape, Table, aligned, like},
    },
    fresh::Fresh,
    gpu::{Argument, Kernel, launch},
};

static FORWARD: Sized = sized!("attention_forward");
static DELTA: Kernel = Kernel::new(&MODULE, "attention_delta");
static BACKWARD_QUERIES: Sized = sized!("attention_backward_queries");
static BACKWARD_KEYS: Sized = sized!("attention_backward_keys");

pub(in crate::attention::gpu) fn forward(
    inputs: [&Tensor; 3],
    packing: &PackedAttention,
) -> Result<(Fresh, Fresh)> {
    let device = inputs[0].device();
    let call = Call::new(inputs, packing)?;
    let mut table = Table::new(packing.starts.iter().copied());
    let tiles = packing.query_tiles(BLOCK_ROWS, &mut table);
    let table = table.upload(device)?;
    let Shape { rows, heads, .. } = call.shape;
    // SAFETY: the kernel writes every row of every head of both.
    let (out, lse) = unsafe { (like(inputs[0])?, Fresh::uninitialized((heads, rows), DType::F32, device)?) };
    let mut arguments = call.arguments(&table, tiles.start);
    arguments.extend([Argument::Write(&out), Argument::Write(&lse)]);
    let kernel = call.shape.kernel_of(&FORWARD);
    // SAFETY: as forward.metal asks. `starts` was checked to cover the rows, the tiles cover its segments, and all tensors have
    // the shapes that the numbers say.
    unsafe { launch(device, &call.shape.launch(kernel, [heads, tiles.count, 1], &arguments))? };
    Ok((out, lse))
}

pub(in crate::attention::gpu) fn backward(
    [queries, keys, values, out, d_out]: [&Tensor; 5],
    lse: &Tensor,
    packing: &PackedAttention,
) -> Result<[Fresh; 3]> {
    let device = queries.device();
    let call = Call::new([queries, keys, values], packing)?;
    let mut table = Table::new(packing.starts.iter().copied());
    let query_tiles = packing.query_tiles(BLOCK_ROWS, &mut table);
    let key_tiles = packing.key_tiles(BLOCK_ROWS, &mut table);
    let table = table.upload(device)?;
    let (out, d_out) = (aligned(&out.contiguous()?)?, aligned(&d_out.contiguous()?)?);
    let delta = call.delta(&out, &d_out)?;
    // SAFETY: the kernels write every row of every head.
    let [d_queries, d_keys, d_values] = unsafe { [like(queries)?, like(keys)?, like(values)?] };

    let Shape { heads, groups, head_dim, .. } = call.shape;
    let given = [Argument::Read(&d_out), Argument::Read(lse), Argument::Read(&delta)];
    let mut arguments = call.arguments(&table, query_tiles.start);
    arguments.extend(given);
    arguments.push(Argument::Write(&d_queries));
    let kernel = call.shape.kernel_of(&BACKWARD_QUERIES);
    // SAFETY: as in `forward`.
    unsafe { launch(device, &call.shape.launch(kernel, [heads, query_tiles.count, 1], &arguments))? };

    let mut arguments = call.arguments(&table, key_tiles.start);
    arguments.extend(given);
    arguments.extend([Argument::Write(&d_keys), Argument::Write(&d_values)]);
    let kernel = call.shape.kernel_of(&BACKWARD_KEYS);
    let column_parts = if head_dim > 128 { 2 } else { 1 };
    // SAFETY: as in `forward`.
    unsafe {
        launch(device, &call.shape.launch(kernel, [groups, key_tiles.count, column_parts], &arguments))?;
    }
    Ok([d_queries, d_keys, d_values])
}

/// What all kernels are given.
struct Call<'a> {
    shape: Shape,
    packing: &'a PackedAttention,
    /// Queries, keys and values.
    inputs: [Tensor; 3],
}

impl<'a> Call<'a> {
    fn new([queries, keys, values]: [&Tensor; 3], packing: &'a PackedAttention) -> Result<Self> {
        let shape = Shape::of(queries, keys.dims()[1])?;
        Ok(Self { shape, packing, inputs: [aligned(queries)?, aligned(keys)?, aligned(values)?] })
    }

    /// `PACKED_PARAMETERS` in common.metal.
    fn arguments<'b>(&'b self, table: &'b Tensor, tiles_at: usize) -> Vec<Argument<'b>> {
        let [queries, keys, values] = &self.inputs;
        let number = |number: usize| Argument::U32(number as u32);
        let stride = |tensor: &Tensor| number(tensor.stride()[0]);
        let (shape, params) = (self.shape, self.packing.params);
        vec![
            Argument::Read(table),
            Argument::ReadRows(queries),
            Argument::ReadRows(keys),
            Argument::ReadRows(values),
            number(tiles_at),
            stride(queries),
            stride(keys),
            stride(values),
            number(shape.rows),
            number(shape.heads),
            number(shape.groups),
            number(shape.head_dim),
            Argument::U32(self.packing.causal.into()),
            Argument::U32(params.window_or_zero()),
            Argument::F32(params.scale),
            Argument::F32(params.cap_or_zero()),
        ]
    }

    /// `[H, T]`: Σ out · d_out of each row.
    fn delta(&self, out: &Tensor, d_out: &Tensor) -> Result<Tensor> {
        /// As in common.metal: each has a row of a head.
        const WARPS: usize = 4;
        let Shape { rows, heads, head_dim, .. } = self.shape;
        // SAFETY: the kernel writes every row of every head.
        let delta = unsafe { Fresh::uninitialized((heads, rows), DType::F32, out.device())? };
        let arguments = [
            Argument::Read(out),
            Argument::Read(d_out),
            Argument::Write(&delta),
            Argument::U32(rows as u32),
            Argument::U32(heads as u32),
            Argument::U32(head_dim as u32),
        ];
        let groups = [(rows * heads).div_ceil(WARPS), 1, 1];
        // SAFETY: as `attention_delta` in backward.metal asks.
        unsafe { launch(out.device(), &self.shape.launch(&DELTA, groups, &arguments))? };
        Ok(delta.into_tensor())
    }
}
