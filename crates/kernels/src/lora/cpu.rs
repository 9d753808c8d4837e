//! The CPU implementation. All rows of a call, whatever their adapters, are one parallel region per product.

mod backward;
mod dora;
mod products;

use std::ops::Range;

use candle_core::{Result, Tensor};

use self::{
    backward::Backward,
    products::{Base, Down, Order, Up, down, up},
};
use super::{LoraAdapter, LoraGradients, LoraSegment};
use crate::{
    fresh::Fresh,
    output::{Output, filled},
    view::{Floats, View, update},
};

/// `base + delta`, or only the delta.
pub(super) fn lora(
    x: &Tensor,
    base: Option<&Tensor>,
    outputs: usize,
    segments: &[LoraSegment<'_>],
) -> Result<Fresh> {
    let (rows, _) = x.dims2()?;
    let base_view = base.map(View::new);
    let base = match &base_view {
        Some(view) => Base::Other(view.f32s("lora: `base`")?),
        None => Base::Nothing,
    };
    let adapters: Vec<AdapterView<'_>> = segments.iter().map(AdapterView::new).collect();
    let parts = adapters.iter().map(AdapterView::part).collect::<Result<Vec<_>>>()?;
    let (projected, starts) = project(x, &parts)?;
    let mut result = Vec::with_capacity(rows * outputs);
    let to = Output::new(result.as_mut_ptr());
    add(&parts, &projected, &starts, base, (rows, outputs), to);
    // SAFETY: the parts and the gaps between them are all rows.
    unsafe { result.set_len(rows * outputs) };
    Ok(Fresh::from_vec(result, (rows, outputs)))
}

pub(super) fn lora_in_place(x: &Tensor, y: &Tensor, segments: &[LoraSegment<'_>]) -> Result<()> {
    let sizes = y.dims2()?;
    let adapters: Vec<AdapterView<'_>> = segments.iter().map(AdapterView::new).collect();
    let parts = adapters.iter().map(AdapterView::part).collect::<Result<Vec<_>>>()?;
    let (projected, starts) = project(x, &parts)?;
    update(y, "lora: `y`", |y| {
        add(&parts, &projected, &starts, Base::InPlace, sizes, Output::new(y.as_mut_ptr()));
        Ok(())
    })
}

pub(super) fn lora_down(x: &Tensor, adapter: &LoraAdapter) -> Result<Fresh> {
    let (rows, width) = x.dims2()?;
    let (x, a) = (View::new(x), View::new(&adapter.a));
    let (x, factor, rank) = (x.f32s("lora_down: `x`")?, a.floats("lora_down: A")?, adapter.rank());
    let run = |to| down(&[Down { x, rows, factor, rank, to }], width);
    // SAFETY: `down` writes every element.
    let projected = unsafe { filled(rows * rank, run) };
    Ok(Fresh::from_vec(projected, (rows, rank)))
}

pub(super) fn lora_up_in_place(projected: &Tensor, y: &Tensor, adapter: &LoraAdapter) -> Result<()> {
    let (rows, outputs) = y.dims2()?;
    let (x, b) = (View::new(projected), View::new(&adapter.b));
    let (x, factor) = (x.f32s("lora_up_in_place: `projected`")?, b.floats("lora_up_in_place: B")?);
    update(y, "lora_up_in_place: `y`", |y| {
        let to = Output::new(y.as_mut_ptr());
        let (rank, scale) = (adapter.rank(), adapter.scale);
        let part = Up { x, rows, factor, order: Order::RankLast, rank, scale, base: Base::InPlace, to };
        up(&[part], outputs);
        Ok(())
    })
}

pub(super) fn lora_backward(
    x: &Tensor,
    dy: &Tensor,
    adapter: &LoraAdapter,
    projected: &Tensor,
    into: &LoraGradients<'_>,
) -> Result<()> {
    let ((rows, inputs), outputs) = (x.dims2()?, dy.dim(1)?);
    let [x, dy, projected, a, b] = [x, dy, projected, &adapter.a, &adapter.b].map(View::new);
    let call = Backward {
        x: x.f32s("lora_backward: `x`")?,
        dy: dy.f32s("lora_backward: `dy`")?,
        down: projected.f32s("lora_backward: `projected`")?,
        a: a.floats("lora_backward: A")?,
        b: b.floats("lora_backward: B")?,
        scale: adapter.scale,
        rank: adapter.rank(),
        rows,
        inputs,
        outputs,
    };
    let g = call.down_gradient();
    if let Some(dx) = into.dx {
        update(dx, "lora_backward: `dx`", |dx| {
            call.add_input_gradient(&g, dx);
            Ok(())
        })?;
    }
    update(into.da, "lora_backward: `da`", |da| {
        call.add_a_gradient(&g, da);
        Ok(())
    })?;
    update(into.db, "lora_backward: `db`", |db| {
        call.add_b_gradient(db);
        Ok(())
    })
}

/// `‖W + scale · B · A‖` by rows.
pub(super) fn row_norms(weight: &Tensor, adapter: &LoraAdapter) -> Result<Fresh> {
    let (outputs, inputs) = weight.dims2()?;
    let [weight, a, b] = [weight, &adapter.a, &adapter.b].map(View::new);
    let (a, b) = (a.floats("dora_norm: A")?.to_f32s(), b.floats("dora_norm: B")?.to_f32s());
    let weight = weight.floats("dora_norm: the weight")?;
    let norms = dora::row_norms(weight, &a, &b, adapter.scale, adapter.rank(), inputs, outputs);
    Ok(Fresh::from_vec(norms, outputs))
}

struct AdapterView<'a> {
    rows: Range<usize>,
    a: View<'a>,
    b: View<'a>,
    rank: usize,
    scale: f32,
}

/// Rows with their adapter.
struct Part<'a> {
    rows: Range<usize>,
    a: Floats<'a>,
    b: Floats<'a>,
    rank: usize,
    scale: f32,
}

impl<'a> AdapterView<'a> {
    fn new(segment: &LoraSegment<'a>) -> Self {
        let adapter = segment.adapter;
        let (a, b) = (View::new(&adapter.a), View::new(&adapter.b));
        Self { rows: segment.rows.clone(), a, b, rank: adapter.rank(), scale: adapter.scale }
    }

    fn part(&self) -> Result<Part<'_>> {
        let (a, b) = (self.a.floats("lora: A")?, self.b.floats("lora: B")?);
        Ok(Part { rows: self.rows.clone(), a, b, rank: self.rank, scale: self.scale })
    }
}

/// `x · Aᵀ` of all parts one after the other, and where each begins.
fn project(x: &Tensor, parts: &[Part<'_>]) -> Result<(Vec<f32>, Vec<usize>)> {
    let (_, width) = x.dims2()?;
    let x = View::new(x);
    let x = x.f32s("lora: `x`")?;
    let mut starts = vec![0];
    for part in parts {
        starts.push(starts[starts.len() - 1] + part.rows.len() * part.rank);
    }
    let run = |to: Output<f32>| {
        let downs: Vec<Down<'_>> = parts
            .iter()
            .zip(&starts)
            .map(|(part, &start)| Down {
                x: &x[part.rows.start * width..part.rows.end * width],
                rows: part.rows.len(),
                factor: part.a,
                rank: part.rank,
                // SAFETY: the vector has room for all parts.
                to: Output::new(unsafe { to.at(start) }),
            })
            .collect();
        down(&downs, width);
    };
    // SAFETY: the parts' products follow each other without gaps.
    let projected = unsafe { filled(starts[parts.len()], run) };
    Ok((projected, starts))
}

/// Adds what was projected to the rows of a result `[rows, outputs]`; rows between the parts get the base.
fn add(
    parts: &[Part<'_>],
    projected: &[f32],
    starts: &[usize],
    base: Base<'_>,
    (rows, outputs): (usize, usize),
    to: Output<f32>,
) {
    let mut ups = Vec::with_capacity(2 * parts.len() + 1);
    let mut push = |rows: Range<usize>, x, factor, rank, scale| {
        let base = match base {
            Base::Other(base) => Base::Other(&base[rows.start * outputs..rows.end * outputs]),
            base => base,
        };
        // SAFETY: the result has all rows.
        let to = Output::new(unsafe { to.at(rows.start * outputs) });
        ups.push(Up { x, rows: rows.len(), factor, order: Order::RankLast, rank, scale, base, to });
    };
    let mut next = 0;
    for (part, starts) in parts.iter().zip(starts.windows(2)) {
        push(next..part.rows.start, &[], Floats::F32(&[]), 0, 0.);
        push(part.rows.clone(), &projected[starts[0]..starts[1]], part.b, part.rank, part.scale);
        next = part.rows.end;
    }
    push(next..rows, &[], Floats::F32(&[]), 0, 0.);
    up(&ups, outputs);
}
