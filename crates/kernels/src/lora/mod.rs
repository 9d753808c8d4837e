//! Low-rank adapters (LoRA) beside frozen dense layers: `y = base + scale · (x · Aᵀ) · Bᵀ`, and their gradients.
//! The method: <https://arxiv.org/abs/2106.09685>.
//!
//! M: rows of `x`, K: inputs, N: outputs, r: rank.
//!
//! An adapter is data. A call names the rows that it applies to, so that one batch serves many adapters, and
//! training and serving run the same code.

mod cpu;
mod dora;
#[cfg(feature = "cuda")]
mod few_rows;
mod gpu;
#[cfg(test)]
mod reference;
mod stack;
mod together;

use std::ops::Range;

use candle_core::{DType, Result, Tensor, bail};

pub use dora::{Dora, DoraGradients, dora, dora_backward, dora_norm};
pub use stack::{LoraStack, RowSlots, linear_with_adapters, lora_stacked_in_place};
pub use together::{
    LoraMember, LoraProjections, lora_backward_together, lora_down_together, lora_up_together,
};

use crate::{
    device::{narrow_on_cpu, runs_kernels},
    graph::record3,
    linear::{rows, with_width},
};

/// One adapter of one layer; A and B in the same float dtype, contiguous.
#[derive(Debug, Clone)]
pub struct LoraAdapter {
    /// `[r, K]`
    pub a: Tensor,
    /// `[N, r]`
    pub b: Tensor,
    /// Multiplies the product: `α / r`, or `α / √r`.
    pub scale: f32,
}

/// Rows of a call that share an adapter.
#[derive(Debug, Clone)]
pub struct LoraSegment<'a> {
    /// Rows of `x`; the segments of a call are in order and apart.
    pub rows: Range<usize>,
    /// What is applied to them.
    pub adapter: &'a LoraAdapter,
}

/// Where [`lora_backward`] adds its gradients.
#[derive(Debug, Clone, Copy)]
pub struct LoraGradients<'a> {
    /// The gradient of `x`, in its dtype; `None` where nobody asks.
    pub dx: Option<&'a Tensor>,
    /// `[r, K]` in f32.
    pub da: &'a Tensor,
    /// `[N, r]` in f32.
    pub db: &'a Tensor,
}

impl LoraAdapter {
    /// r
    pub fn rank(&self) -> usize {
        self.a.dims().first().copied().unwrap_or(0)
    }

    /// N
    pub fn outputs(&self) -> usize {
        self.b.dims().first().copied().unwrap_or(0)
    }
}

/// `base [.., N]`, with each segment's delta added to its rows. Recorded in candle's graph: `x`, `base`, A and B
/// get gradients where they are tracked.
pub fn lora(x: &Tensor, base: &Tensor, segments: &[LoraSegment<'_>]) -> Result<Tensor> {
    let outputs = check("lora", x, base, segments)?;
    let is_tracked = |segment: &LoraSegment<'_>| segment.adapter.a.track_op() || segment.adapter.b.track_op();
    if x.track_op() || base.track_op() || segments.iter().any(is_tracked) {
        return lora_recorded(x, base, outputs, segments);
    }
    if runs_kernels(x.device()) {
        let y = base.contiguous()?.copy()?;
        lora_in_place(x, &y, segments)?;
        return Ok(y);
    }
    if narrow_on_cpu(x) {
        return lora(&x.to_dtype(DType::F32)?, &base.to_dtype(DType::F32)?, segments)?.to_dtype(x.dtype());
    }
    let mut y = cpu::lora(&rows(x)?, Some(&rows(base)?), outputs, segments)?;
    y.shape = base.shape().clone();
    Ok(y.into_tensor())
}

/// Adds each segment's delta to its rows of `y [.., N]`, which is changed for everybody who holds it, and must
/// not share its memory with `x` or an adapter.
pub fn lora_in_place(x: &Tensor, y: &Tensor, segments: &[LoraSegment<'_>]) -> Result<()> {
    let outputs = check("lora_in_place", x, y, segments)?;
    check_changeable("lora_in_place", "y", y)?;
    if narrow_on_cpu(x) {
        let sum = lora(&x.detach(), y, segments)?;
        return y.slice_set(&sum, 0, 0);
    }
    let (x, y) = (rows(x)?, y.reshape((y.elem_count() / outputs.max(1), outputs))?);
    if runs_kernels(x.device()) {
        gpu::lora_in_place(&x, &y, segments)
    } else {
        cpu::lora_in_place(&x, &y, segments)
    }
}

/// The delta alone: `scale · (x · Aᵀ) · Bᵀ`, `x [.., K] → [.., N]`. Recorded in candle's graph.
pub fn lora_delta(x: &Tensor, adapter: &LoraAdapter) -> Result<Tensor> {
    check_adapter("lora_delta", x, adapter)?;
    if narrow_on_cpu(x) {
        let [a, b] = [&adapter.a, &adapter.b].map(|factor| factor.to_dtype(DType::F32));
        let adapter = LoraAdapter { a: a?, b: b?, scale: adapter.scale };
        return lora_delta(&x.to_dtype(DType::F32)?, &adapter)?.to_dtype(x.dtype());
    }
    let (flat, outputs) = (rows(x)?, adapter.outputs());
    let mut y = if runs_kernels(x.device()) {
        gpu::lora_delta(&flat, adapter)
    } else {
        let segment = LoraSegment { rows: 0..flat.dim(0)?, adapter };
        cpu::lora(&flat, None, outputs, &[segment])
    }?;
    y.shape = with_width(x, outputs).into();
    let scale = adapter.scale;
    let x_is_tracked = x.track_op();
    record3("lora", y, [x, &adapter.a, &adapter.b], move |[x, a, b], _, dy| {
        let adapter = LoraAdapter { a: a.clone(), b: b.clone(), scale };
        let projected = lora_down(x, &adapter)?;
        let dx = if x_is_tracked { Some(x.zeros_like()?) } else { None };
        let [da, db] = [a, b].map(|factor| Tensor::zeros(factor.shape(), DType::F32, factor.device()));
        let (da, db) = (da?, db?);
        lora_backward(x, dy, &adapter, &projected, &LoraGradients { dx: dx.as_ref(), da: &da, db: &db })?;
        Ok([dx, Some(da.to_dtype(a.dtype())?), Some(db.to_dtype(b.dtype())?)])
    })
}

/// The first half of a delta, `x · Aᵀ [M, r]`, which [`lora_backward`] asks for again.
pub fn lora_down(x: &Tensor, adapter: &LoraAdapter) -> Result<Tensor> {
    check_adapter("lora_down", x, adapter)?;
    if narrow_on_cpu(x) {
        return lora_down(&x.to_dtype(DType::F32)?, adapter)?.to_dtype(x.dtype());
    }
    let x = rows(x)?;
    let projected =
        if runs_kernels(x.device()) { gpu::lora_down(&x, adapter) } else { cpu::lora_down(&x, adapter) };
    Ok(projected?.into_tensor())
}

/// The second half: adds `scale · projected · Bᵀ` to `y [.., N]`, which is changed for everybody who holds it.
pub fn lora_up_in_place(projected: &Tensor, y: &Tensor, adapter: &LoraAdapter) -> Result<()> {
    let (outputs, rank) = (adapter.outputs(), adapter.rank());
    let count = y.elem_count() / outputs.max(1);
    if adapter.b.dims() != [outputs, rank]
        || y.dims().last() != Some(&outputs)
        || projected.dims() != [count, rank]
    {
        let (projected, y, b) = (projected.dims(), y.dims(), adapter.b.dims());
        bail!(
            "lora_up_in_place: `projected` {projected:?}, `y` {y:?} and B {b:?} do not fit; expected [M, r], [.., N], [N, r]"
        );
    }
    check_changeable("lora_up_in_place", "y", y)?;
    let flat = y.reshape((count, outputs))?;
    if narrow_on_cpu(y) {
        let sum = flat.to_dtype(DType::F32)?;
        lora_up_in_place(&projected.to_dtype(DType::F32)?, &sum, adapter)?;
        return flat.slice_set(&sum.to_dtype(y.dtype())?, 0, 0);
    }
    let projected = projected.contiguous()?;
    if runs_kernels(y.device()) {
        gpu::lora_up_in_place(&projected, &flat, adapter)
    } else {
        cpu::lora_up_in_place(&projected, &flat, adapter)
    }
}

/// Adds the gradients of [`lora_delta`] for one adapter on all rows: `dy [.., N]`, `projected` from [`lora_down`].
pub fn lora_backward(
    x: &Tensor,
    dy: &Tensor,
    adapter: &LoraAdapter,
    projected: &Tensor,
    into: &LoraGradients<'_>,
) -> Result<()> {
    check_adapter("lora_backward", x, adapter)?;
    let (count, rank) = (rows(x)?.dim(0)?, adapter.rank());
    let expected_dy = with_width(x, adapter.outputs());
    for (name, found, expected) in [
        ("dy", dy.dims(), expected_dy.as_slice()),
        ("projected", projected.dims(), &[count, rank]),
        ("da", into.da.dims(), adapter.a.dims()),
        ("db", into.db.dims(), adapter.b.dims()),
        ("dx", into.dx.map_or(x.dims(), Tensor::dims), x.dims()),
    ] {
        if found != expected {
            bail!("lora_backward: `{name}` is {found:?}, expected {expected:?} for `x` {:?}", x.dims());
        }
    }
    for (name, sum) in [("da", Some(into.da)), ("db", Some(into.db)), ("dx", into.dx)] {
        sum.map_or(Ok(()), |sum| check_changeable("lora_backward", name, sum))?;
    }
    if narrow_on_cpu(x) {
        let [x, dy, projected] = [x, dy, projected].map(|tensor| tensor.to_dtype(DType::F32));
        let dx = into.dx.map(|dx| dx.to_dtype(DType::F32)).transpose()?;
        lora_backward(&x?, &dy?, adapter, &projected?, &LoraGradients { dx: dx.as_ref(), ..*into })?;
        return match (into.dx, dx) {
            (Some(to), Some(dx)) => to.slice_set(&dx.to_dtype(to.dtype())?, 0, 0),
            _ => Ok(()),
        };
    }
    let (flat, dy, projected) = (rows(x)?, rows(dy)?, projected.contiguous()?);
    let dx = into.dx.map(|dx| dx.reshape(flat.shape())).transpose()?;
    let into = LoraGradients { dx: dx.as_ref(), ..*into };
    if runs_kernels(x.device()) {
        gpu::lora_backward(&flat, &dy, adapter, &projected, &into)
    } else {
        cpu::lora_backward(&flat, &dy, adapter, &projected, &into)
    }
}

/// [`lora`] as nodes of a graph: one for each segment, and a sum.
fn lora_recorded(x: &Tensor, base: &Tensor, outputs: usize, segments: &[LoraSegment<'_>]) -> Result<Tensor> {
    let count = base.elem_count() / outputs.max(1);
    if let [LoraSegment { rows, adapter }] = segments
        && *rows == (0..count)
    {
        return base + lora_delta(x, adapter)?;
    }
    let (x, flat) = (x.reshape((count, ()))?, base.reshape((count, outputs))?);
    let mut parts = Vec::with_capacity(2 * segments.len() + 1);
    let mut next = 0;
    for LoraSegment { rows, adapter } in segments {
        if next < rows.start {
            parts.push(flat.narrow(0, next, rows.start - next)?);
        }
        if !rows.is_empty() {
            let delta = lora_delta(&x.narrow(0, rows.start, rows.len())?, adapter)?;
            parts.push((flat.narrow(0, rows.start, rows.len())? + delta)?);
        }
        next = rows.end;
    }
    if next < count {
        parts.push(flat.narrow(0, next, count - next)?);
    }
    Tensor::cat(&parts, 0)?.reshape(base.shape())
}

/// N.
fn check(operation: &str, x: &Tensor, y: &Tensor, segments: &[LoraSegment<'_>]) -> Result<usize> {
    let (Some((_, leading)), Some((&outputs, leading_of_y))) = (x.dims().split_last(), y.dims().split_last())
    else {
        bail!("{operation}: a tensor is a scalar, expected [.., K] and [.., N]");
    };
    if leading != leading_of_y {
        let (x, y) = (x.dims(), y.dims());
        bail!("{operation}: the base is {y:?}, expected the leading dimensions of `x` {x:?}");
    }
    let (count, mut next) = (leading.iter().product(), 0);
    for LoraSegment { rows, adapter } in segments {
        if rows.start < next || rows.end < rows.start || rows.end > count {
            bail!("{operation}: segment {rows:?} must follow row {next} and end within {count} rows");
        }
        check_adapter(operation, x, adapter)?;
        if adapter.outputs() != outputs {
            let b = adapter.b.dims();
            bail!("{operation}: B is {b:?}, expected [{outputs}, r] for a base of {:?}", y.dims());
        }
        next = rows.end;
    }
    Ok(outputs)
}

fn check_adapter(operation: &str, x: &Tensor, adapter: &LoraAdapter) -> Result<()> {
    let (x, a, b) = (x.dims(), adapter.a.dims(), adapter.b.dims());
    match (x.last(), a, b) {
        (Some(width), [rank, inputs], [_, rank_of_b]) if inputs == width && rank == rank_of_b => Ok(()),
        _ => bail!("{operation}: A is {a:?} and B {b:?}, expected [r, K] and [N, r] for `x` {x:?}"),
    }
}

/// What is changed in place must not be part of a graph, which would not know.
fn check_changeable(operation: &str, name: &str, tensor: &Tensor) -> Result<()> {
    if tensor.track_op() || !tensor.is_contiguous() {
        bail!("{operation}: `{name}` is changed in place: it must be contiguous and outside of any graph");
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod suite;
