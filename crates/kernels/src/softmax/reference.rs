//! The definition in plain candle ops, in f64.

use candle_core::{D, Result, Tensor};

/// `seen`: 1 where a column is seen, else 0, of a shape that broadcasts to that of `x`.
pub(super) fn softmax(x: &Tensor, seen: &Tensor) -> Result<Tensor> {
    let largest = x.detach().max_keepdim(D::Minus1)?;
    let weights = x.broadcast_sub(&largest)?.exp()?.broadcast_mul(seen)?;
    // A row that sees nothing is divided by one.
    let nothing = seen.max_keepdim(D::Minus1)?.affine(-1., 1.)?;
    weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?.broadcast_add(&nothing)?)
}
