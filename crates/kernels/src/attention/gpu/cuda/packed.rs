//! Packed sequences, forward and backward.

use candle_core::{CudaDevice, DType, Result, Tensor};

use super::{Common, ForwardArguments, Rows, Shape, slots, word};
use crate::{
    attention::{
        PackedAttention,
        gpu::call::{Table, aligned, like},
    },
    fresh::Fresh,
    gpu::{
        Argument, Float,
        cuda::{StructKernel, with_addresses},
    },
};

/// With fewer waves of blocks than this the last, partly filled one counts, and smaller blocks are faster.
const WAVES_OF_SHORT_CALLS: usize = 4;

/// As in arguments.cuh.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct BackwardArguments {
    common: Common,
    queries: Rows,
    keys: Rows,
    values: Rows,
    out: Rows,
    d_out: Rows,
    d_queries: Rows,
    d_keys: Rows,
    d_values: Rows,
    lse: u64,
    delta: u64,
    splits: u32,
    partial: u64,
}

pub(in crate::attention::gpu) fn forward(
    device: &CudaDevice,
    [queries, keys, values]: [&Tensor; 3],
    packing: &PackedAttention,
) -> Result<(Fresh, Fresh)> {
    let shape = Shape::of(queries, keys.dims()[1])?;
    let inputs = [aligned(queries)?, aligned(keys)?, aligned(values)?];
    // SAFETY: the kernel writes every row of every head of both.
    let (out, lse) = unsafe {
        let lse = (shape.heads, shape.rows);
        (like(queries)?, Fresh::uninitialized(lse, DType::F32, queries.device())?)
    };
    let call = Call { device, shape, packing };
    let kernel = call.kernel("attention_forward", "attention_forward_short")?;
    let mut table = Table::new(packing.starts.iter().copied());
    let tiles = packing.query_tiles(kernel.rows as usize, &mut table);
    let table = table.upload(queries.device())?;

    let [queries, keys, values] = &inputs;
    let arguments = [
        Argument::Read(&table),
        Argument::Read(queries),
        Argument::Read(keys),
        Argument::Read(values),
        Argument::Write(&out),
        Argument::Write(&lse),
    ];
    with_addresses(device, "packed_attention", &arguments, |addresses| {
        let &[table, queries_at, keys_at, values_at, out_at, lse_at] = addresses else {
            unreachable!("one address per argument")
        };
        let arguments = ForwardArguments {
            common: Common { starts: table, tiles: word(table, tiles.start), ..call.common()? },
            queries: rows(queries_at, queries),
            keys: rows(keys_at, keys),
            values: rows(values_at, values),
            pack: 1,
            splits: 1,
            out: Rows { data: out_at, stride: (shape.heads * shape.head_dim) as i64 },
            lse: lse_at,
            ..ForwardArguments::default()
        };
        // SAFETY: the struct is arguments.cuh's. `starts` was checked to cover the rows, the tiles cover its segments, and
        // all tensors have the shapes that `common` says.
        unsafe { kernel.launch(device, [shape.heads, tiles.count, 1], arguments) }
    })?;
    Ok((out, lse))
}

pub(in crate::attention::gpu) fn backward(
    device: &CudaDevice,
    inputs: [&Tensor; 5],
    lse: &Tensor,
    packing: &PackedAttention,
) -> Result<[Fresh; 3]> {
    let [queries, keys, ..] = inputs;
    let shape = Shape::of(queries, keys.dims()[1])?;
    let call = Call { device, shape, packing };
    let queries_kernel = call.kernel("attention_backward_queries", "attention_backward_queries_short")?;
    let keys_kernel = shape.kernel(device, "attention_backward_keys")?;
    let mut table = Table::new(packing.starts.iter().copied());
    let query_tiles = packing.query_tiles(queries_kernel.rows as usize, &mut table);
    let key_tiles = packing.key_tiles(keys_kernel.rows as usize, &mut table);
    let table = table.upload(queries.device())?;
    // Few sequences have few blocks of keys: then the query heads that share a key head are shared out too.
    let splits = (2 * slots(device)? / (shape.groups * key_tiles.count).max(1)).clamp(1, shape.share());

    let memory = Memory::new(call, inputs, splits)?;
    let inputs = [
        aligned(inputs[0])?,
        aligned(inputs[1])?,
        aligned(inputs[2])?,
        aligned(inputs[3])?,
        aligned(inputs[4])?,
    ];
    let [queries, keys, values, out, d_out] = &inputs;
    let arguments = [
        Argument::Read(&table),
        Argument::Read(queries),
        Argument::Read(keys),
        Argument::Read(values),
        Argument::Read(out),
        Argument::Read(d_out),
        Argument::Read(lse),
        Argument::Write(&memory.d_queries),
        Argument::Write(&memory.d_keys),
        Argument::Write(&memory.d_values),
        Argument::Write(&memory.delta),
        Argument::Write(&memory.partial),
    ];
    with_addresses(device, "packed_attention_backward", &arguments, |addresses| {
        let &[table, q, k, v, o, d_o, lse, d_q, d_k, d_v, delta_at, partial] = addresses else {
            unreachable!("one address per argument")
        };
        let dense = |data, heads| Rows { data, stride: (heads * shape.head_dim) as i64 };
        let arguments = BackwardArguments {
            common: Common { starts: table, tiles: word(table, query_tiles.start), ..call.common()? },
            queries: rows(q, queries),
            keys: rows(k, keys),
            values: rows(v, values),
            out: rows(o, out),
            d_out: rows(d_o, d_out),
            d_queries: dense(d_q, shape.heads),
            d_keys: dense(d_k, shape.groups),
            d_values: dense(d_v, shape.groups),
            lse,
            delta: delta_at,
            splits: splits as u32,
            partial,
        };
        let delta = shape.elementwise(device, "attention_delta")?;
        let delta_grid = shape.row_grid(&delta, shape.head_dim / 8);
        // SAFETY: as in `forward`. `delta` is written before the others read it, and `partial` before `reduce` does.
        unsafe {
            delta.launch(device, delta_grid, arguments)?;
            queries_kernel.launch(device, [shape.heads, query_tiles.count, 1], arguments)?;
            let common = Common { tiles: word(table, key_tiles.start), ..arguments.common };
            let arguments = BackwardArguments { common, ..arguments };
            keys_kernel.launch(
                device,
                [shape.groups * splits, key_tiles.count, call.column_parts()],
                arguments,
            )?;
            if splits > 1 {
                let reduce = shape.elementwise(device, "attention_reduce")?;
                let pairs = shape.rows * shape.groups * shape.head_dim / 2;
                reduce.launch(device, [pairs.div_ceil(reduce.threads as usize), 1, 1], arguments)?;
            }
        }
        Ok(())
    })?;
    Ok([memory.d_queries, memory.d_keys, memory.d_values])
}

/// What the backward pass writes.
struct Memory {
    d_queries: Fresh,
    d_keys: Fresh,
    d_values: Fresh,
    /// `[H, T]`
    delta: Fresh,
    /// `[splits, 2, T, G, D]`; not used without splits.
    partial: Fresh,
}

impl Memory {
    fn new(call: Call<'_>, [queries, keys, values, ..]: [&Tensor; 5], splits: usize) -> Result<Self> {
        let Shape { rows, heads, groups, head_dim, .. } = call.shape;
        let floats = |count: usize| {
            // SAFETY: `delta` and `backward_keys` write all of it before it is read.
            unsafe { Fresh::uninitialized(count, DType::F32, queries.device()) }
        };
        // SAFETY: the kernels write every row of every head.
        let [d_queries, d_keys, d_values] = unsafe { [like(queries)?, like(keys)?, like(values)?] };
        let partial = floats(if splits > 1 { splits * 2 * rows * groups * head_dim } else { 1 })?;
        Ok(Self { d_queries, d_keys, d_values, delta: floats(heads * rows)?, partial })
    }
}

#[derive(Clone, Copy)]
struct Call<'a> {
    device: &'a CudaDevice,
    shape: Shape,
    packing: &'a PackedAttention,
}

impl Call<'_> {
    fn common(self) -> Result<Common> {
        self.shape.common(self.packing.params, self.packing.causal)
    }

    /// The kernel for this head size, with small blocks (there are some for heads of up to 64) for a call with few rows.
    fn kernel(self, usual: &'static str, short: &'static str) -> Result<StructKernel> {
        let kernel = self.shape.kernel(self.device, usual)?;
        let blocks: usize =
            self.packing.counts().iter().map(|count| count.div_ceil(kernel.rows as usize)).sum();
        let is_short = blocks * self.shape.heads < WAVES_OF_SHORT_CALLS * slots(self.device)?;
        if is_short && self.shape.head_dim <= 64 && self.shape.float != Float::F32 {
            return self.shape.kernel(self.device, short);
        }
        Ok(kernel)
    }

    /// Blocks that share out the columns of large heads in `backward_keys`.
    fn column_parts(self) -> usize {
        if self.shape.head_dim > 128 && self.shape.float != Float::F32 { 2 } else { 1 }
    }
}

fn rows(data: u64, tensor: &Tensor) -> Rows {
    Rows { data, stride: tensor.stride()[0] as i64 }
}
