//! Dense layers: `y = x · wᵀ + b`, and their gradients.
//!
//! M: rows of `x`, K: inputs, N: outputs. `x` may have any rank; its leading dimensions are M together.

pub(crate) mod cpu;
pub(crate) mod few_rows;
mod gpu;
mod many_rows;
pub(crate) mod microkernel;
#[cfg(test)]
mod reference;
#[cfg(target_arch = "x86_64")]
pub(crate) mod split;

use candle_core::{D, DType, Result, Tensor, bail};

pub(crate) use cpu::product_in_tiles;

use crate::{
    accumulate::accumulate,
    device::{self, runs_kernels},
    fresh::Fresh,
    gated::gated,
    graph::{record2, record3},
    trace::{self, Work},
};

pub use crate::gated::Activation;

/// A weight `[N, K]` with its optional bias `[N]`, each in its own float dtype.
#[derive(Debug, Clone)]
pub struct Projection {
    /// `[N, K]`, contiguous (a view of rows of a larger tensor is contiguous).
    pub weight: Tensor,
    /// `[N]`
    pub bias: Option<Tensor>,
}

/// `x [.., K] → [.., N]`. In a graph, a frozen weight costs nothing: only what is tracked gets a gradient.
pub fn linear(x: &Tensor, projection: &Projection) -> Result<Tensor> {
    let [y] = linear_many(x, [projection])?;
    Ok(y)
}

/// Several projections of the same input, on the CPU in one parallel region.
pub fn linear_many<const COUNT: usize>(
    x: &Tensor,
    projections: [&Projection; COUNT],
) -> Result<[Tensor; COUNT]> {
    let _op = trace::op("linear", x.device(), || {
        Work::products(x, &projections.map(|projection| &projection.weight))
    });
    for projection in projections {
        check_weight("linear", x, projection)?;
    }
    if device::narrow_on_cpu(x) {
        let wide = linear_many(&x.to_dtype(DType::F32)?, projections)?;
        return each(wide.iter().map(|y| y.to_dtype(x.dtype())));
    }
    let rows = rows(x)?;
    let results = if runs_kernels(x.device()) {
        each(projections.iter().map(|projection| gpu::linear(&rows, projection)))
    } else {
        cpu::products(&rows, projections.map(|projection| (projection, None)))
    }?;
    let mut recorded = Vec::with_capacity(COUNT);
    for (mut y, projection) in results.into_iter().zip(projections) {
        y.shape = with_width(x, projection.weight.dim(0)?).into();
        recorded.push(record(y, x, projection)?);
    }
    Ok(recorded.try_into().expect("one result per projection"))
}

/// `activation(x · gateᵀ) ⊙ (x · upᵀ)`: the first half of a gated MLP.
pub fn gated_linear(
    x: &Tensor,
    gate: &Projection,
    up: &Projection,
    activation: Activation,
) -> Result<Tensor> {
    let _op = trace::op("gated_linear", x.device(), || Work::products(x, &[&gate.weight, &up.weight]));
    check_weight("gated_linear", x, gate)?;
    check_weight("gated_linear", x, up)?;
    if gate.weight.dims() != up.weight.dims() {
        let (gate, up) = (gate.weight.dims(), up.weight.dims());
        bail!("gated_linear: the weight of `gate` is {gate:?}, expected {up:?} like that of `up`");
    }
    let is_recorded = x.track_op() || is_trained(gate) || is_trained(up);
    if is_recorded || runs_kernels(x.device()) {
        let [gate, up] = linear_many(x, [gate, up])?;
        return gated(&gate, &up, activation);
    }
    if device::narrow_on_cpu(x) {
        return gated_linear(&x.to_dtype(DType::F32)?, gate, up, activation)?.to_dtype(x.dtype());
    }
    let [mut y] = cpu::products(&rows(x)?, [(up, Some((gate, activation)))])?;
    y.shape = with_width(x, up.weight.dim(0)?).into();
    Ok(y.into_tensor())
}

/// The gradient of [`linear`]'s `x` from that of its result: `dy [.., N] → [.., K]`. The bias does not matter.
pub fn linear_backward(dy: &Tensor, projection: &Projection) -> Result<Tensor> {
    let _op = trace::op("linear_backward", dy.device(), || Work::product(dy, &projection.weight));
    let inputs = check_gradient("linear_backward", dy, projection)?;
    if device::narrow_on_cpu(dy) {
        return linear_backward(&dy.to_dtype(DType::F32)?, projection)?.to_dtype(dy.dtype());
    }
    let rows = rows(dy)?;
    let mut dx = if runs_kernels(dy.device()) {
        gpu::input_gradient(&rows, &projection.weight)
    } else {
        cpu::input_gradient(&rows, &projection.weight)
    }?;
    dx.shape = with_width(dy, inputs).into();
    Ok(dx.into_tensor())
}

/// Adds what [`linear_backward`] gives to `dx [.., K]`, which is changed for everybody who holds it.
pub fn linear_backward_add(dy: &Tensor, projection: &Projection, dx: &Tensor) -> Result<()> {
    let _op = trace::op("linear_backward_add", dy.device(), || {
        Work::product(dy, &projection.weight).and_moving(&[dx])
    });
    let inputs = check_gradient("linear_backward_add", dy, projection)?;
    let expected = with_width(dy, inputs);
    if dx.dims() != expected || dx.dtype() != dy.dtype() || dx.track_op() || !dx.is_contiguous() {
        let (found, dtype) = (dx.dims(), dx.dtype());
        bail!(
            "linear_backward_add: `dx` is {found:?} in {dtype:?}, expected {expected:?} in {:?}, contiguous and outside of any graph",
            dy.dtype()
        );
    }
    if runs_kernels(dy.device()) {
        let dy = rows(dy)?;
        let dx = dx.reshape((dy.dim(0)?, inputs))?;
        if gpu::add_input_gradient(&dy, &projection.weight, &dx)? {
            return Ok(());
        }
    }
    accumulate(dx, &linear_backward(dy, projection)?)
}

/// The gradient of the weight, `[N, K]` in f32. Half precision on a GPU is rounded to it once, after the sum.
pub fn linear_weight_backward(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let _op = trace::op("linear_weight_backward", x.device(), || Work::outer(x, dy));
    let (x, dy) = (rows(x)?, rows(dy)?);
    if x.dim(0)? != dy.dim(0)? {
        let (x, dy) = (x.dims(), dy.dims());
        bail!("linear_weight_backward: `dy` is {dy:?}, expected as many rows as `x` {x:?}");
    }
    if runs_kernels(x.device()) {
        trace::launched(u64::from(x.dtype() != DType::F32));
        return gpu::weight_gradient(&x, &dy)?.into_tensor().to_dtype(DType::F32);
    }
    Ok(cpu::weight_gradient(&x.to_dtype(DType::F32)?, &dy.to_dtype(DType::F32)?)?.into_tensor())
}

/// The gradient of the bias, `[N]` in f32.
pub fn linear_bias_backward(dy: &Tensor) -> Result<Tensor> {
    let _op = trace::op("linear_bias_backward", dy.device(), || Work::elementwise(dy, 1, 1));
    if runs_kernels(dy.device()) {
        trace::launched(1 + u64::from(dy.dtype() != DType::F32));
    }
    let dy = rows(dy)?.to_dtype(DType::F32)?;
    if runs_kernels(dy.device()) { dy.sum(0) } else { cpu::bias_gradient(&dy) }
}

/// Puts a result into the graph of what it was made from.
fn record(y: Fresh, x: &Tensor, projection: &Projection) -> Result<Tensor> {
    let tracked = (x.track_op(), projection.weight.track_op());
    let gradients = move |x: &Tensor, weight: &Tensor, dy: &Tensor| -> Result<[Option<Tensor>; 2]> {
        let frozen = Projection { weight: weight.clone(), bias: None };
        let dx = if tracked.0 { Some(linear_backward(dy, &frozen)?) } else { None };
        let dw =
            if tracked.1 { Some(linear_weight_backward(x, dy)?.to_dtype(weight.dtype())?) } else { None };
        Ok([dx, dw])
    };
    let weight = &projection.weight;
    let Some(bias) = projection.bias.as_ref().filter(|bias| bias.track_op()) else {
        return record2("linear", y, [x, weight], move |[x, weight], _, dy| gradients(x, weight, dy));
    };
    record3("linear", y, [x, weight, bias], move |[x, weight, bias], _, dy| {
        let [dx, dw] = gradients(x, weight, dy)?;
        Ok([dx, dw, Some(linear_bias_backward(dy)?.to_dtype(bias.dtype())?)])
    })
}

fn is_trained(projection: &Projection) -> bool {
    projection.weight.track_op() || projection.bias.as_ref().is_some_and(Tensor::track_op)
}

/// `[M, K]`, contiguous and outside of the graph.
pub(crate) fn rows(x: &Tensor) -> Result<Tensor> {
    let x = x.detach();
    let Ok(width) = x.dim(D::Minus1) else { bail!("linear: `x` is a scalar, expected [.., K]") };
    let rows = x.elem_count().checked_div(width).unwrap_or_else(|| {
        let dims = x.dims();
        dims[..dims.len() - 1].iter().product()
    });
    x.contiguous()?.reshape((rows, width))
}

/// The dimensions of `x`, with another last one.
pub(crate) fn with_width(x: &Tensor, width: usize) -> Vec<usize> {
    let dims = x.dims();
    [&dims[..dims.len() - 1], &[width]].concat()
}

fn each<T, const COUNT: usize>(results: impl Iterator<Item = Result<T>>) -> Result<[T; COUNT]> {
    let results = results.collect::<Result<Vec<T>>>()?;
    Ok(results.try_into().ok().expect("one result per projection"))
}

fn check_weight(operation: &str, x: &Tensor, projection: &Projection) -> Result<()> {
    let Ok(width) = x.dim(D::Minus1) else { bail!("{operation}: `x` is a scalar, expected [.., K]") };
    let (weight, bias) = (&projection.weight, projection.bias.as_ref());
    match *weight.dims() {
        [outputs, inputs] if inputs == width => match bias {
            Some(bias) if bias.dims() != [outputs] => {
                bail!("{operation}: the bias is {:?}; its weight has {outputs} outputs", bias.dims())
            }
            _ => Ok(()),
        },
        ref found => {
            bail!("{operation}: the weight is {found:?}, expected [N, {width}] for `x` {:?}", x.dims())
        }
    }
}

/// K.
fn check_gradient(operation: &str, dy: &Tensor, projection: &Projection) -> Result<usize> {
    let Ok(width) = dy.dim(D::Minus1) else { bail!("{operation}: `dy` is a scalar, expected [.., N]") };
    match *projection.weight.dims() {
        [outputs, inputs] if outputs == width => Ok(inputs),
        ref found => {
            bail!("{operation}: the weight is {found:?}, expected [{width}, K] for `dy` {:?}", dy.dims())
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod suite;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
