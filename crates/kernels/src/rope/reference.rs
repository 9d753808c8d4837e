//! The same arithmetic in plain candle ops.

use candle_core::{D, Result, Tensor};

use super::Rotation;

pub(super) fn rope(x: &Tensor, rotation: &Rotation) -> Result<Tensor> {
    let (_rows, _heads, head_dim) = x.dims3()?;
    let half = rotation.cos.dim(D::Minus1)?;
    let cos = rotation.cos.unsqueeze(1)?.to_dtype(x.dtype())?; // [rows, 1, half]
    let sin = rotation.sin.unsqueeze(1)?.to_dtype(x.dtype())?;
    let first = x.narrow(D::Minus1, 0, half)?;
    let second = x.narrow(D::Minus1, half, half)?;
    let turned_first = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
    let turned_second = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
    if 2 * half == head_dim {
        return Tensor::cat(&[turned_first, turned_second], D::Minus1);
    }
    let rest = x.narrow(D::Minus1, 2 * half, head_dim - 2 * half)?;
    Tensor::cat(&[turned_first, turned_second, rest], D::Minus1)
}
