//! The MLP half of a block, for training.

use candle_core::{Result, Tensor};
use metal_candle_kernels::{
    gated::{gated, gated_backward_in_place},
    linear::{linear, linear_many},
    trace,
};

use super::{
    Shared,
    part::{self, PartGradients, PartOf, SavedParts},
};
use crate::{
    lora::{BlockAdapter, Part},
    model::layers::Mlp,
};

/// What the way back needs.
pub(super) struct SavedMlp {
    gate: Tensor, // [T, intermediate]
    up: Tensor,   // [T, intermediate]
    input_parts: SavedParts<2>,
    down_part: SavedParts<1>,
}

/// `x [T, hidden] → [T, hidden]`
pub(super) fn forward(
    mlp: &Mlp,
    x: &Tensor,
    layer: usize,
    adapter: Option<&BlockAdapter>,
    shared: &Shared<'_>,
) -> Result<(Tensor, SavedMlp)> {
    let _half = trace::span("mlp_half", x.device());
    let mut saved = gate_and_up(mlp, x, layer, adapter, shared)?;
    let middle = gated(&saved.gate, &saved.up, mlp.activation)?;
    let down = PartOf::new(Part::Down, layer, &mlp.down, adapter);
    let y = linear(&middle, &mlp.down)?;
    saved.down_part = part::adapt([down], &middle, [&y], shared)?;
    Ok((y, saved))
}

/// The first products only: no way back needs more, unless the last one is adapted.
pub(super) fn gate_and_up(
    mlp: &Mlp,
    x: &Tensor,
    layer: usize,
    adapter: Option<&BlockAdapter>,
    shared: &Shared<'_>,
) -> Result<SavedMlp> {
    let part = |part| PartOf::new(part, layer, mlp.projection(part), adapter);
    let [gate, up] = linear_many(x, [&mlp.gate, &mlp.up])?;
    let input_parts = part::adapt([Part::Gate, Part::Up].map(part), x, [&gate, &up], shared)?;
    Ok(SavedMlp { gate, up, input_parts, down_part: SavedParts::nothing() })
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
    let _half = trace::span("mlp_half_backward", x.device());
    let part = |part| PartOf::new(part, layer, mlp.projection(part), adapter);
    let SavedMlp { gate, up, input_parts, down_part } = saved;
    // Only a trained product asks for its input.
    let is_trained = gradients.contains_key(&Part::Down);
    let middle = if is_trained { gated(&gate, &up, mlp.activation)? } else { gate.clone() };
    let d_middle = part::back([part(Part::Down)], &middle, &down_part, [dy], true, shared, gradients)?;
    let d_middle = d_middle.expect("asked for");
    drop(middle);
    // Nobody else holds `gate` and `up`.
    let (d_gate, d_up) = gated_backward_in_place(gate, up, &d_middle, mlp.activation)?;
    drop(d_middle);
    let parts = [Part::Gate, Part::Up].map(part);
    let d_x = part::back(parts, x, &input_parts, [&d_gate, &d_up], true, shared, gradients)?;
    Ok(d_x.expect("asked for"))
}
