//! Rotary position embedding, "half" layout: element `i` turns with element `i + rotary/2`.

mod reference;

use candle_core::{Result, Tensor};

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
    reference::rope(x, rotation)
}
