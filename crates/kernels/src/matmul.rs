//! Candle's own matrix product (cuBLAS, Metal's gemm), as storage that an op can put into the graph itself.

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
    let ((left, left_layout), (right, right_layout)) = (a.storage_and_layout(), b.storage_and_layout());
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
