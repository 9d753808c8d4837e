//! Gradients of a dense layer on the CPU, as tiled products of other operands.

use std::mem::MaybeUninit;

use candle_core::{Result, Tensor};

use super::{Call, Layer, Order, Product, many_rows};
use crate::{
    fresh::Fresh,
    pool::{self, Disjoint},
    simd::{Simd, dispatch, for_vectors, load, store},
    view::{Floats, View},
};

/// Numbers of the smaller operand, the one that is packed once, at a time: 32 MB. A gradient of logits has more.
const PACKED: usize = 8 << 20;

/// Columns of a task that sums columns.
const COLUMNS: usize = 256;

/// `dy [M, N] · weight [N, K]`
pub(in super::super) fn input_gradient(dy: &Tensor, weight: &Tensor) -> Result<Fresh> {
    let (rows, outputs) = dy.dims2()?;
    let inputs = weight.dim(1)?;
    let [dy, weight] = [dy, weight].map(View::new);
    let dy = dy.f32s("linear_backward: `dy`")?;
    let weight = weight.floats("linear_backward: `weight`")?;
    let left = Left { numbers: dy, order: Order::InputsLast, stride: outputs, rows };
    Ok(product(left, weight, outputs, inputs))
}

/// `dyᵀ [N, M] · x [M, K]`
pub(in super::super) fn weight_gradient(x: &Tensor, dy: &Tensor) -> Result<Fresh> {
    let (rows, inputs) = x.dims2()?;
    let outputs = dy.dim(1)?;
    let [x, dy] = [x, dy].map(View::new);
    let x = x.f32s("linear_weight_backward: `x`")?;
    let dy = dy.f32s("linear_weight_backward: `dy`")?;
    let left = Left { numbers: dy, order: Order::InputsFirst, stride: outputs, rows: outputs };
    Ok(product(left, Floats::F32(x), rows, inputs))
}

/// The sum of the rows of `dy [M, N]`.
pub(in super::super) fn bias_gradient(dy: &Tensor) -> Result<Tensor> {
    let outputs = dy.dim(1)?;
    let dy = View::new(dy);
    let dy = dy.f32s("linear_bias_backward: `dy`")?;
    let mut sums = vec![0.; outputs];
    pool::for_each_part(&mut sums, COLUMNS, |part, sums| sum_columns(dy, outputs, part * COLUMNS, sums));
    Ok(Fresh::from_vec(sums, outputs).into_tensor())
}

/// The operand whose rows are those of the result.
struct Left<'a> {
    numbers: &'a [f32],
    order: Order,
    stride: usize,
    rows: usize,
}

/// `left [rows, steps] · right [steps, columns]`, some steps at a time.
fn product(left: Left<'_>, right: Floats<'_>, steps: usize, columns: usize) -> Fresh {
    let rows = left.rows;
    let mut result = Vec::with_capacity(rows * columns);
    let most = (PACKED / rows.min(columns).max(1)).max(1).min(steps.max(1));
    for start in (0..steps.max(1)).step_by(most) {
        let count = most.min(steps - start);
        let to: &mut [MaybeUninit<f32>] = &mut result.spare_capacity_mut()[..rows * columns];
        let weight = right.slice(start * columns..(start + count) * columns);
        let layer = Layer { weight, order: Order::InputsFirst, bias: None };
        let products =
            [Product { layer, gate: None, outputs: columns, adds: start > 0, result: Disjoint::new(to) }];
        let skipped = match left.order {
            Order::InputsLast => start,
            Order::InputsFirst => start * left.stride,
        };
        many_rows::run(&Call {
            x: left.numbers.get(skipped..).unwrap_or_default(),
            x_order: left.order,
            x_stride: left.stride,
            rows,
            inputs: count,
            products: &products,
        });
    }
    // SAFETY: the first round has written every element.
    unsafe { result.set_len(rows * columns) };
    Fresh::from_vec(result, (rows, columns))
}

dispatch! {
    fn sum_columns(numbers: &[f32], width: usize, first: usize, sums: &mut [f32]) = sum_columns_with;
}

#[inline(always)]
fn sum_columns_with<S: Simd>(simd: S, numbers: &[f32], width: usize, first: usize, sums: &mut [f32]) {
    for row in numbers.chunks_exact(width) {
        let row = &row[first..first + sums.len()];
        for_vectors!(S, sums.len(), |column, count| {
            let sum = simd.add(load(simd, sums, column, count), load(simd, row, column, count));
            store(simd, sums, column, count, sum);
        });
    }
}
