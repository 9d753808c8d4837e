//! Rotary position embedding (<https://arxiv.org/abs/2104.09864>).

mod cpu;
mod gpu;
#[cfg(test)]
mod reference;

use candle_core::{DType, Result, Tensor, bail};

use crate::{
    device::{narrow_on_cpu, runs_kernels},
    fresh::Fresh,
    graph::record1,
    trace::{self, Work},
};

/// Which elements of the rotated part of a head turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// Element `i` with element `i + rotary / 2`: Hugging Face's weights of most models.
    Halves,
    /// Element `2i` with element `2i + 1`, also called interleaved: the original weights.
    Neighbours,
}

/// The rotation of every row of a batch: made once per forward, shared by all layers.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// `[rows, rotary / 2]`, f32
    pub cos: Tensor,
    /// `[rows, rotary / 2]`, f32
    pub sin: Tensor,
    /// What turns together.
    pub pairs: Pairs,
}

/// Rotates the first `rotary` elements of each head: `x [rows, heads, D] → [rows, heads, D]`.
pub fn rope(x: &Tensor, rotation: &Rotation) -> Result<Tensor> {
    let _op = trace::op("rope", x.device(), || {
        Work::elementwise(x, 2, 3).and_moving(&[&rotation.cos, &rotation.sin])
    });
    check("rope", "x", x, rotation)?;
    if narrow_on_cpu(x) {
        return rope(&x.to_dtype(DType::F32)?, rotation)?.to_dtype(x.dtype());
    }
    let y = turn(x, rotation, 1.)?;
    let rotation = rotation.clone();
    record1("rope", y, x, move |_, _, dy| Ok([Some(rope_backward(dy, &rotation)?)]))
}

/// The gradient of [`rope`]'s `x` from that of its result: the inverse rotation.
pub fn rope_backward(dy: &Tensor, rotation: &Rotation) -> Result<Tensor> {
    let _op = trace::op("rope_backward", dy.device(), || {
        Work::elementwise(dy, 2, 3).and_moving(&[&rotation.cos, &rotation.sin])
    });
    check("rope_backward", "dy", dy, rotation)?;
    if narrow_on_cpu(dy) {
        return rope_backward(&dy.to_dtype(DType::F32)?, rotation)?.to_dtype(dy.dtype());
    }
    Ok(turn(dy, rotation, -1.)?.into_tensor())
}

/// `direction` is 1, or −1 to turn back.
fn turn(x: &Tensor, rotation: &Rotation, direction: f32) -> Result<Fresh> {
    let x = x.contiguous()?;
    if runs_kernels(x.device()) {
        gpu::rope(&x, rotation, direction)
    } else {
        cpu::rope(&x, rotation, direction)
    }
}

fn check(operation: &str, name: &str, x: &Tensor, rotation: &Rotation) -> Result<()> {
    let &[rows, _heads, head_dim] = x.dims() else {
        bail!("{operation}: `{name}` is {:?}, expected [rows, heads, D]", x.dims());
    };
    match *rotation.cos.dims() {
        [cos_rows, half] if cos_rows == rows && 2 * half <= head_dim => {}
        ref found => {
            let (most, shape) = (head_dim / 2, x.dims());
            bail!("{operation}: `cos` is {found:?}, expected [{rows}, up to {most}] for `{name}` {shape:?}");
        }
    }
    if rotation.sin.dims() != rotation.cos.dims() {
        let (found, expected) = (rotation.sin.dims(), rotation.cos.dims());
        bail!("{operation}: `sin` is {found:?}, expected {expected:?} like `cos`");
    }
    for (name, table) in [("cos", &rotation.cos), ("sin", &rotation.sin)] {
        if table.dtype() != DType::F32 || !table.is_contiguous() {
            bail!(
                "{operation}: `{name}` must be contiguous f32; it is {:?}, {:?}",
                table.dtype(),
                table.layout()
            );
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod suite;
#[cfg(test)]
mod tests;
