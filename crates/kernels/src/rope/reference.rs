//! The definition in plain candle ops, in f64.

use candle_core::{D, Result, Tensor};

use super::{Pairs, Rotation};

pub(super) fn rope(x: &Tensor, rotation: &Rotation) -> Result<Tensor> {
    let (rows, heads, head_dim) = x.dims3()?;
    let half = rotation.cos.dim(D::Minus1)?;
    let cos = rotation.cos.unsqueeze(1)?.to_dtype(x.dtype())?; // [rows, 1, half]
    let sin = rotation.sin.unsqueeze(1)?.to_dtype(x.dtype())?;
    let rotated = x.narrow(D::Minus1, 0, 2 * half)?;
    let (first, second) = match rotation.pairs {
        Pairs::Halves => (rotated.narrow(D::Minus1, 0, half)?, rotated.narrow(D::Minus1, half, half)?),
        Pairs::Neighbours => {
            let pairs = rotated.reshape((rows, heads, half, 2))?;
            (pairs.narrow(3, 0, 1)?.squeeze(3)?, pairs.narrow(3, 1, 1)?.squeeze(3)?)
        }
    };
    let turned_first = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
    let turned_second = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
    let turned = match rotation.pairs {
        Pairs::Halves => Tensor::cat(&[turned_first, turned_second], D::Minus1)?,
        Pairs::Neighbours => {
            Tensor::stack(&[turned_first, turned_second], 3)?.reshape((rows, heads, 2 * half))?
        }
    };
    if 2 * half == head_dim {
        return Ok(turned);
    }
    Tensor::cat(&[turned, x.narrow(D::Minus1, 2 * half, head_dim - 2 * half)?], D::Minus1)
}
