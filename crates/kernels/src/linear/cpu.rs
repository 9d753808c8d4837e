//! The fast path on the CPU: what a call computes, and which way.

mod backward;

use std::{borrow::Cow, mem::MaybeUninit};

use candle_core::{Result, Tensor, bail};

pub(super) use backward::{bias_gradient, input_gradient, weight_gradient};

use super::{Activation, Projection, few_rows, many_rows};
use crate::{
    fresh::Fresh,
    output::Output,
    pool::Disjoint,
    simd::{Simd, math},
    view::{Floats, View},
};

/// From this many rows on, weights are packed for tiles instead of read along their rows.
const MANY_ROWS: usize = 24;

/// How an operand lies in memory. Inputs are what is summed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// `[rows of x, inputs]` or `[outputs, inputs]`: what a forward pass multiplies.
    InputsLast,
    /// `[inputs, rows of x]` or `[inputs, outputs]`.
    InputsFirst,
}

/// One dense layer.
pub(super) struct Layer<'a> {
    pub(super) weight: Floats<'a>,
    pub(super) order: Order,
    /// `[N]`
    bias: Option<Cow<'a, [f32]>>,
}

/// One result: `layer(x)`, or with a gate `activation(gate(x)) · layer(x)`.
pub(super) struct Product<'a> {
    pub(super) layer: Layer<'a>,
    pub(super) gate: Option<(Layer<'a>, Activation)>,
    /// N
    pub(super) outputs: usize,
    /// Whether the result holds a part of the sum already.
    pub(super) adds: bool,
    /// `[M, N]`
    result: Disjoint<'a, MaybeUninit<f32>>,
}

/// All results of a call, computed in one parallel region.
pub(super) struct Call<'a> {
    pub(super) x: &'a [f32],
    pub(super) x_order: Order,
    /// From one row of `x` as it lies in memory to the next.
    pub(super) x_stride: usize,
    /// M
    pub(super) rows: usize,
    /// K
    pub(super) inputs: usize,
    pub(super) products: &'a [Product<'a>],
}

/// The projections of one result: a layer alone, or with the gate that goes before it.
pub(super) type Projections<'a> = (&'a Projection, Option<(&'a Projection, Activation)>);

/// Several results of the same input.
pub(super) fn products<const COUNT: usize>(
    x: &Tensor,
    projections: [Projections<'_>; COUNT],
) -> Result<[Fresh; COUNT]> {
    let (rows, inputs) = x.dims2()?;
    let x = View::new(x);
    let x = x.f32s("the input of a linear layer")?;
    let views = projections.map(|(layer, gate)| {
        (LayerView::new(layer), gate.map(|(gate, activation)| (LayerView::new(gate), activation)))
    });
    let mut results = projections.map(|(layer, _)| {
        let outputs = layer.weight.dims().first().copied().unwrap_or(0);
        (outputs, Vec::<f32>::with_capacity(rows * outputs))
    });
    let mut products = Vec::with_capacity(COUNT);
    for ((layer, gate), (outputs, result)) in views.iter().zip(&mut results) {
        products.push(Product {
            layer: layer.layer(inputs, *outputs)?,
            gate: match gate {
                Some((gate, activation)) => Some((gate.layer(inputs, *outputs)?, *activation)),
                None => None,
            },
            outputs: *outputs,
            adds: false,
            result: Disjoint::new(&mut result.spare_capacity_mut()[..rows * *outputs]),
        });
    }
    let call = Call { x, x_order: Order::InputsLast, x_stride: inputs, rows, inputs, products: &products };
    if rows < MANY_ROWS {
        few_rows::run(&call);
    } else {
        many_rows::run(&call);
    }
    drop(products);
    Ok(results.map(|(outputs, mut result)| {
        // SAFETY: the region has written every element of every result.
        unsafe { result.set_len(rows * outputs) };
        Fresh::from_vec(result, (rows, outputs))
    }))
}

/// `to = x [rows, inputs] · weightᵀ [inputs, outputs]`, in tiles, for few outputs.
///
/// # Safety
/// `to` has room for `[rows, outputs]`, all of which is written.
pub(crate) unsafe fn product_in_tiles(
    x: &[f32],
    (rows, inputs): (usize, usize),
    weight: Floats<'_>,
    outputs: usize,
    to: Output<f32>,
) {
    // SAFETY: the caller's promise.
    let to = unsafe { std::slice::from_raw_parts_mut(to.at(0).cast::<MaybeUninit<f32>>(), rows * outputs) };
    let layer = Layer { weight, order: Order::InputsLast, bias: None };
    let products = [Product { layer, gate: None, outputs, adds: false, result: Disjoint::new(to) }];
    many_rows::run_in_vectors(&Call {
        x,
        x_order: Order::InputsLast,
        x_stride: inputs,
        rows,
        inputs,
        products: &products,
    });
}

struct LayerView<'a> {
    dims: &'a [usize],
    weight: View<'a>,
    bias: Option<(&'a [usize], View<'a>)>,
}

impl<'a> LayerView<'a> {
    fn new(projection: &'a Projection) -> Self {
        Self {
            dims: projection.weight.dims(),
            weight: View::new(&projection.weight),
            bias: projection.bias.as_ref().map(|bias| (bias.dims(), View::new(bias))),
        }
    }

    fn layer(&self, inputs: usize, outputs: usize) -> Result<Layer<'_>> {
        if self.dims != [outputs, inputs] {
            bail!(
                "the weight of a linear layer has shape {:?}; expected [{outputs}, {inputs}] ([outputs, inputs])",
                self.dims
            );
        }
        let bias = match &self.bias {
            None => None,
            Some((dims, _)) if *dims != [outputs] => {
                bail!("the bias of a linear layer has shape {dims:?}; its weight has {outputs} outputs")
            }
            Some((_, bias)) => Some(match bias.floats("the bias of a linear layer")? {
                Floats::F32(bias) => Cow::Borrowed(bias),
                bias => Cow::Owned(bias.to_f32s()),
            }),
        };
        let weight = self.weight.floats("the weight of a linear layer")?;
        Ok(Layer { weight, order: Order::InputsLast, bias })
    }
}

impl Product<'_> {
    /// The layers in the order in which [`finish`](Self::finish) takes their sums.
    pub(super) fn layers(&self) -> impl Iterator<Item = &Layer<'_>> {
        self.gate.iter().map(|(gate, _)| gate).chain([&self.layer])
    }

    /// Whether the result is sums and nothing else.
    pub(super) fn is_plain(&self) -> bool {
        self.gate.is_none() && self.layer.bias.is_none()
    }

    /// Where columns of a row of the result begin, and how far it is to the next row.
    pub(super) fn place(&self, row: usize, column: usize) -> (*mut f32, usize) {
        (self.result.address(row * self.outputs + column).cast(), self.outputs)
    }

    /// Adds biases, applies the gate, and writes columns `column..column + count` of `row`.
    ///
    /// # Safety
    /// From `gate` (if there is one) and `values`, `count` sums rounded up to whole vectors must be
    /// readable. Nobody else may be writing these columns.
    #[inline(always)]
    pub(super) unsafe fn finish<S: Simd>(
        &self,
        simd: S,
        (gate, values): (*const f32, *const f32),
        row: usize,
        column: usize,
        count: usize,
    ) {
        // SAFETY: the caller's promise.
        let out = unsafe { self.result.part(row * self.outputs + column, count) };
        let out = out.as_mut_ptr().cast::<f32>();
        let mut done = 0;
        while done < count {
            let width = S::LANES.min(count - done);
            // SAFETY: `width` columns remain, and biases have as many numbers as there are columns.
            unsafe {
                let mut y = simd.load(values.add(done));
                if let Some(bias) = &self.layer.bias {
                    y = simd.add(y, simd.load_first(bias.as_ptr().add(column + done), width));
                }
                if let Some((layer, activation)) = &self.gate {
                    let mut g = simd.load(gate.add(done));
                    if let Some(bias) = &layer.bias {
                        g = simd.add(g, simd.load_first(bias.as_ptr().add(column + done), width));
                    }
                    let g = match activation {
                        Activation::Silu => math::silu(simd, g),
                        Activation::GeluTanh => math::gelu_tanh(simd, g),
                        Activation::Gelu => math::gelu(simd, g),
                    };
                    y = simd.mul(y, g);
                }
                if self.adds {
                    y = simd.add(y, simd.load_first(out.add(done), width));
                }
                if width == S::LANES {
                    simd.store(out.add(done), y);
                } else {
                    simd.store_first(out.add(done), y, width);
                }
            }
            done += width;
        }
    }
}
