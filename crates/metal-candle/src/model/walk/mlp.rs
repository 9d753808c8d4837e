//! The MLP half of a block, for training.

use candle_core::{Result, Tensor};
use metal_candle_kernels::{
    gated::{gated, gated_backward},
    linear::{linear, linear_many},
};

use super::{
    Shared,
    part::{InputGradient, PartGradients, PartOf, SavedPart},
};
use crate::{
    lora::{BlockAdapter, Part},
    model::layers::Mlp,
};

/// What the way back needs.
pub(super) struct SavedMlp {
    gate: Tensor, // [T, intermediate]
    up: Tensor,   // [T, intermediate]
    gate_part: SavedPart,
    up_part: SavedPart,
    down_part: SavedPart,
}

/// `x [T, hidden] → [T, hidden]`
pub(super) fn forward(
    mlp: &Mlp,
    x: &Tensor,
    layer: usize,
    adapter: Option<&BlockAdapter>,
    shared: &Shared<'_>,
) -> Result<(Tensor, SavedMlp)> {
    let (middle, mut saved) = forward_inner(mlp, x, layer, adapter, shared)?;
    let down = PartOf::new(Part::Down, layer, &mlp.down, adapter);
    let y = linear(&middle, &mlp.down)?;
    saved.down_part = down.adapt(&middle, &y, shared)?;
    Ok((y, saved))
}

/// Up to the last product, which no way back needs unless it is adapted: `x [T, hidden] → [T, intermediate]`.
pub(super) fn forward_inner(
    mlp: &Mlp,
    x: &Tensor,
    layer: usize,
    adapter: Option<&BlockAdapter>,
    shared: &Shared<'_>,
) -> Result<(Tensor, SavedMlp)> {
    let part = |part| PartOf::new(part, layer, mlp.projection(part), adapter);
    let [gate, up] = linear_many(x, [&mlp.gate, &mlp.up])?;
    let gate_part = part(Part::Gate).adapt(x, &gate, shared)?;
    let up_part = part(Part::Up).adapt(x, &up, shared)?;
    let middle = gated(&gate, &up, mlp.activation)?;
    Ok((middle, SavedMlp { gate, up, gate_part, up_part, down_part: SavedPart::default() }))
}

/// The gradient of `x` from that of the result.
#[allow(clippy::too_many_arguments)]
pub(super) fn back(
    mlp: &Mlp,
    x: &Tensor,
    saved: SavedMlp,
    dy: &Tensor,
    layer: usize,
    adapter: Option<&BlockAdapter>,
    shared: &Shared<'_>,
    gradients: &PartGradients,
) -> Result<Tensor> {
    let part = |part| PartOf::new(part, layer, mlp.projection(part), adapter);
    let SavedMlp { gate, up, gate_part, up_part, down_part } = saved;
    let down = part(Part::Down);
    let sums = gradients.get(&Part::Down);
    // Only a trained product asks for its input.
    let middle = if sums.is_some() { gated(&gate, &up, mlp.activation)? } else { gate.clone() };
    let d_middle = down.back(&middle, &down_part, dy, InputGradient::New, shared, sums)?.expect("asked for");
    drop(middle);
    let (d_gate, d_up) = gated_backward(&gate, &up, &d_middle, mlp.activation)?;
    drop((d_middle, gate, up));
    let back = |which, saved: &SavedPart, dy: &Tensor, wanted: InputGradient<'_>| {
        let found = part(which).back(x, saved, dy, wanted, shared, gradients.get(&which))?;
        Ok::<_, candle_core::Error>(found.expect("asked for"))
    };
    let d_x = back(Part::Gate, &gate_part, &d_gate, InputGradient::New)?;
    drop(d_gate);
    back(Part::Up, &up_part, &d_up, InputGradient::AddTo(&d_x))
}
