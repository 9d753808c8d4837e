use candle_core::{Result, Tensor};
pub(super) fn accumulate(into: &Tensor, x: &Tensor) -> Result<()> {
    into.slice_set(&(into + x.to_dtype(into.dtype())?)?, 0, 0)
}
pub(super) fn dropout(x: &Tensor, _probability: f32, _seed: u64, _first: u64) -> Result<Tensor> {
    Ok(x.clone())
}
