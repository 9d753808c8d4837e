//! Layer normalisation over the last dimension.

mod cpu;
mod gpu;
#[cfg(test)]
mod reference;

use candle_core::{D, DType, Result, Tensor, bail};

use crate::{
    device::{narrow_on_cpu, runs_kernels},
    fresh::Fresh,
    graph::{record2, record3},
    trace::{self, Work},
};

/// A norm's parameters.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    /// `[D]`, any float dtype.
    pub weight: Tensor,
    /// `[D]`, any float dtype.
    pub bias: Option<Tensor>,
    /// Added to the variance.
    pub epsilon: f32,
}

/// `(x − mean(x)) / sqrt(var(x) + ε) · w + b` over the last dimension; statistics in f32. `x` of any rank.
pub fn layer_norm(x: &Tensor, norm: &LayerNorm) -> Result<Tensor> {
    let _op = trace::op("layer_norm", x.device(), || Work::elementwise(x, 2, 7).and_moving(&[&norm.weight]));
    check("layer_norm", x, norm, None)?;
    if narrow_on_cpu(x) {
        return layer_norm(&x.to_dtype(DType::F32)?, norm)?.to_dtype(x.dtype());
    }
    let dense = x.contiguous()?;
    let y =
        if runs_kernels(x.device()) { gpu::layer_norm(&dense, norm) } else { cpu::layer_norm(&dense, norm) }?;
    record(x, norm, y)
}

/// The gradient of [`layer_norm`]'s `x` from that of its result.
pub fn layer_norm_backward(x: &Tensor, norm: &LayerNorm, dy: &Tensor) -> Result<Tensor> {
    let _op = trace::op("layer_norm_backward", x.device(), || {
        Work::elementwise(x, 3, 11).and_moving(&[&norm.weight])
    });
    check("layer_norm_backward", x, norm, Some(dy))?;
    if narrow_on_cpu(x) {
        let [x_wide, dy_wide] = [x.to_dtype(DType::F32)?, dy.to_dtype(DType::F32)?];
        return layer_norm_backward(&x_wide, norm, &dy_wide)?.to_dtype(x.dtype());
    }
    let (x, dy) = (x.contiguous()?, dy.contiguous()?);
    let dx =
        if runs_kernels(x.device()) { gpu::backward(&x, norm, &dy) } else { cpu::backward(&x, norm, &dy) }?;
    Ok(dx.into_tensor())
}

/// The gradients of the norm's weight and bias, both `[D]` in f32.
pub fn layer_norm_weight_backward(x: &Tensor, norm: &LayerNorm, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let _op = trace::op("layer_norm_weight_backward", x.device(), || Work::elementwise(x, 2, 8));
    check("layer_norm_weight_backward", x, norm, Some(dy))?;
    if runs_kernels(x.device()) {
        return gpu::weight_backward(&x.contiguous()?, norm, &dy.contiguous()?);
    }
    let wide = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.contiguous();
    cpu::weight_backward(&wide(x)?, norm, &wide(dy)?)
}

/// [`layer_norm_backward`] and [`layer_norm_weight_backward`], on the CPU in one pass over memory.
pub fn layer_norm_backward_all(
    x: &Tensor,
    norm: &LayerNorm,
    dy: &Tensor,
) -> Result<(Tensor, Tensor, Tensor)> {
    let _op = trace::op("layer_norm_backward_all", x.device(), || {
        Work::elementwise(x, 3, 14).and_moving(&[&norm.weight])
    });
    check("layer_norm_backward_all", x, norm, Some(dy))?;
    if runs_kernels(x.device()) || narrow_on_cpu(x) {
        let (dw, db) = layer_norm_weight_backward(x, norm, dy)?;
        return Ok((layer_norm_backward(x, norm, dy)?, dw, db));
    }
    let (dx, dw, db) = cpu::backward_all(&x.contiguous()?, norm, &dy.contiguous()?)?;
    Ok((dx.into_tensor(), dw, db))
}

/// Puts the result into candle's graph, with or without a bias.
fn record(x: &Tensor, norm: &LayerNorm, y: Fresh) -> Result<Tensor> {
    let epsilon = norm.epsilon;
    let is_trained = norm.weight.track_op() || norm.bias.as_ref().is_some_and(Tensor::track_op);
    let gradients = move |x: &Tensor, norm: &LayerNorm, dy: &Tensor| -> Result<[Option<Tensor>; 3]> {
        if !is_trained {
            return Ok([Some(layer_norm_backward(x, norm, dy)?), None, None]);
        }
        let (dx, dw, db) = layer_norm_backward_all(x, norm, dy)?;
        let db = norm.bias.as_ref().map(|bias| db.to_dtype(bias.dtype())).transpose()?;
        Ok([Some(dx), Some(dw.to_dtype(norm.weight.dtype())?), db])
    };
    let Some(bias) = &norm.bias else {
        return record2("layer_norm", y, [x, &norm.weight], move |[x, weight], _, dy| {
            let norm = LayerNorm { weight: weight.clone(), bias: None, epsilon };
            let [dx, dw, _] = gradients(x, &norm, dy)?;
            Ok([dx, dw])
        });
    };
    record3("layer_norm", y, [x, &norm.weight, bias], move |[x, weight, bias], _, dy| {
        gradients(x, &LayerNorm { weight: weight.clone(), bias: Some(bias.clone()), epsilon }, dy)
    })
}

fn check(operation: &str, x: &Tensor, norm: &LayerNorm, dy: Option<&Tensor>) -> Result<()> {
    let Ok(width) = x.dim(D::Minus1) else { bail!("{operation}: `x` is a scalar, expected [.., D]") };
    for (name, parameter) in [("weight", Some(&norm.weight)), ("bias", norm.bias.as_ref())] {
        if let Some(parameter) = parameter
            && parameter.dims() != [width]
        {
            let (found, shape) = (parameter.dims(), x.dims());
            bail!("{operation}: `{name}` is {found:?}, expected [{width}] for `x` {shape:?}");
        }
    }
    if let Some(dy) = dy
        && (dy.dims(), dy.dtype()) != (x.dims(), x.dtype())
    {
        let (found, expected) = ((dy.dims(), dy.dtype()), (x.dims(), x.dtype()));
        bail!("{operation}: `dy` is {found:?}, expected {expected:?} like `x`");
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod suite;
