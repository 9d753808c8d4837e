//! Rotary position embedding, "half" layout: element `i` turns with element `i + rotary/2`.

mod cpu;
mod reference;

use candle_core::{Result, Tensor, bail};

/// The rotation of every row of a batch: made once per forward, shared by all layers.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// `[rows, rotary / 2]`, f32
    pub cos: Tensor,
    /// `[rows, rotary / 2]`, f32
    pub sin: Tensor,
}

/// Rotates the first `rotary` elements of each head: `x [rows, heads, D] → [rows, heads, D]`.
pub fn rope(x: &Tensor, rotation: &Rotation) -> Result<Tensor> {
    check(x, rotation)?;
    if x.device().is_cpu() { cpu::rope(x, rotation) } else { reference::rope(x, rotation) }
}

fn check(x: &Tensor, rotation: &Rotation) -> Result<()> {
    let &[rows, _heads, head_dim] = x.dims() else {
        bail!("rope: `x` is {:?}, expected [rows, heads, D]", x.dims());
    };
    match *rotation.cos.dims() {
        [cos_rows, half] if cos_rows == rows && 2 * half <= head_dim => {}
        ref found => {
            let most = head_dim / 2;
            bail!("rope: `cos` is {found:?}, expected [{rows}, up to {most}] for `x` {:?}", x.dims());
        }
    }
    if rotation.sin.dims() != rotation.cos.dims() {
        let (found, expected) = (rotation.sin.dims(), rotation.cos.dims());
        bail!("rope: `sin` is {found:?}, expected {expected:?} like `cos`");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
