//! How large an adapter's matrices are.

use candle_core::{DType, Tensor};

use super::{AdapterLayer, LoraError};

/// Frobenius norms of the matrices of one site, or of several as if they were one matrix.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Norms {
    /// A
    pub a: f64,
    /// B
    pub b: f64,
    /// What is added to the weight: `scale · B · A`.
    pub change: f64,
}

impl AdapterLayer {
    /// The norms of its matrices.
    pub fn norms(&self) -> Result<Norms, LoraError> {
        let wide = |tensor: &Tensor| tensor.to_dtype(DType::F64);
        let (a, b) = (wide(&self.lora.a)?, wide(&self.lora.b)?);
        // ‖BA‖² is the sum of the products of the elements of BᵀB and AAᵀ, which are small.
        let of_b = b.t()?.contiguous()?.matmul(&b)?;
        let of_a = a.matmul(&a.t()?.contiguous()?)?;
        let sum = |tensor: Tensor| tensor.sum_all()?.to_scalar::<f64>();
        let change = sum((of_b * of_a)?)?.max(0.0).sqrt() * f64::from(self.lora.scale.abs());
        Ok(Norms { a: sum(a.sqr()?)?.sqrt(), b: sum(b.sqr()?)?.sqrt(), change })
    }
}

impl Norms {
    /// Of both together.
    pub fn and(self, other: Self) -> Self {
        Self { a: self.a.hypot(other.a), b: self.b.hypot(other.b), change: self.change.hypot(other.change) }
    }
}
