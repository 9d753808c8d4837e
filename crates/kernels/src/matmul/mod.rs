//! Matrix products of a device's library (cuBLAS, Metal's gemm), as storage that an op can put into the graph itself.

#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{DType, Layout, Result, Storage, Tensor, backend::BackendStorage, bail};

use crate::fresh::Fresh;

/// `a [M, K] · b [K, N]`, each contiguous or the transpose of something contiguous, of the same dtype.
pub(crate) fn matmul(a: &Tensor, b: &Tensor) -> Result<Fresh> {
    let ((rows, inner), (inner_of_b, columns)) = (a.dims2()?, b.dims2()?);
    if inner != inner_of_b || a.dtype() != b.dtype() {
        let (a, b) = ((a.dims(), a.dtype()), (b.dims(), b.dtype()));
        bail!("a product of {a:?} and {b:?} is not defined");
    }
    if rows * inner * columns == 0 {
        return zeros(a, (rows, columns));
    }
    if let Some(found) = large_product(a, b, None)? {
        return Ok(found);
    }
    let ((left, left_layout), (right, right_layout)) = (a.storage_and_layout(), b.storage_and_layout());
    crate::trace::launched(1);
    let sizes = (1, rows, columns, inner);
    let storage = match (&*left, &*right) {
        (Storage::Cpu(a), Storage::Cpu(b)) => Storage::Cpu(product(a, b, sizes, left_layout, right_layout)?),
        (Storage::Cuda(a), Storage::Cuda(b)) => {
            Storage::Cuda(product(a, b, sizes, left_layout, right_layout)?)
        }
        (Storage::Metal(a), Storage::Metal(b)) => {
            Storage::Metal(product(a, b, sizes, left_layout, right_layout)?)
        }
        _ => bail!("the two factors of a product are on different devices"),
    };
    Ok(Fresh { storage, shape: (rows, columns).into() })
}

/// `a [M, K] · b [K, N] + bias [N]` in one pass over the result, where this device can; as [`matmul`] otherwise.
pub(crate) fn matmul_bias(a: &Tensor, b: &Tensor, bias: &Tensor) -> Result<Option<Fresh>> {
    if a.dims2()?.1 != b.dims2()?.0 || bias.dims() != [b.dim(1)?] || bias.dtype() != a.dtype() {
        bail!("a product of {:?} and {:?} with a bias {:?} is not defined", a.dims(), b.dims(), bias.dims());
    }
    large_product(a, b, Some(bias))
}

/// The second factor of [`matmul_add`], of the first's dtype and contiguous.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Right<'a> {
    /// `[K, N]`
    AsIs(&'a Tensor),
    /// `[N, K]`
    Transposed(&'a Tensor),
}

/// `into [M, N] += scale · a [M, K] · b [K, N]` in one pass over `into`, rounded once; says whether this device can.
pub(crate) fn matmul_add(a: &Tensor, b: Right<'_>, scale: f32, into: &Tensor) -> Result<bool> {
    let (b, (inner_of_b, columns), transposed) = match b {
        Right::AsIs(b) => (b, b.dims2()?, false),
        Right::Transposed(b) => (b, b.t()?.dims2()?, true),
    };
    let (rows, inner) = a.dims2()?;
    let is_fit = [a, b, into].iter().all(|tensor| tensor.dtype() == a.dtype() && tensor.is_contiguous());
    if inner != inner_of_b || into.dims() != [rows, columns] || !is_fit {
        bail!("{:?} += {:?} · {:?} is not defined", into.dims(), a.dims(), b.dims());
    }
    match a.device() {
        #[cfg(feature = "cuda")]
        candle_core::Device::Cuda(device) if rows * inner * columns > 0 => {
            let as_factor = if transposed { b.t()? } else { b.clone() };
            Ok(cuda::large_product_into(device, a, &as_factor, None, scale, cuda::Target::Add(into))?
                || cuda::matmul_add(device, [a, b, into], [rows, inner, columns], transposed, scale)?)
        }
        _ => {
            let _ = (transposed, scale);
            Ok(false)
        }
    }
}

/// A product that is worth a choice among the library's kernels, where this device has such a choice.
fn large_product(a: &Tensor, b: &Tensor, bias: Option<&Tensor>) -> Result<Option<Fresh>> {
    match a.device() {
        #[cfg(feature = "cuda")]
        candle_core::Device::Cuda(device) => {
            if !cuda::is_large(a, b)? {
                return Ok(None);
            }
            let shape = (a.dim(0)?, b.dim(1)?);
            // SAFETY: the product writes every element, or nobody sees the result.
            let y = unsafe { Fresh::uninitialized(shape, a.dtype(), a.device())? };
            let is_made = cuda::large_product_into(device, a, b, bias, 1.0, cuda::Target::New(&y))?;
            Ok(is_made.then_some(y))
        }
        _ => {
            let _ = (b, bias);
            Ok(None)
        }
    }
}

fn product<S: BackendStorage>(
    a: &S,
    b: &S,
    sizes: (usize, usize, usize, usize),
    a_layout: &Layout,
    b_layout: &Layout,
) -> Result<S> {
    a.matmul(b, sizes, a_layout, b_layout)
}

fn zeros(like: &Tensor, shape: (usize, usize)) -> Result<Fresh> {
    use candle_core::{Device, backend::BackendDevice, cpu_backend::CpuDevice};
    let (shape, dtype): (_, DType) = (shape.into(), like.dtype());
    let storage = match like.device() {
        Device::Cpu => Storage::Cpu(CpuDevice.zeros_impl(&shape, dtype)?),
        Device::Cuda(device) => Storage::Cuda(device.zeros_impl(&shape, dtype)?),
        Device::Metal(device) => Storage::Metal(device.zeros_impl(&shape, dtype)?),
    };
    Ok(Fresh { storage, shape })
}
