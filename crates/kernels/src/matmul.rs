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
            cuda::matmul_add(device, [a, b, into], [rows, inner, columns], transposed, scale)
        }
        _ => {
            let _ = (transposed, scale);
            Ok(false)
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

#[cfg(feature = "cuda")]
mod cuda {
    use std::ffi::c_void;

    use candle_core::{
        CudaDevice, DType, Result, Tensor,
        cuda_backend::{
            WrapErr,
            cudarc::cublas::{result::gemm_ex, sys},
        },
    };

    use crate::gpu::{Argument, cuda::with_addresses};

    /// cuBLAS counts columns first: it is told of `intoᵀ += scale · bᵀ · aᵀ`.
    pub(super) fn matmul_add(
        device: &CudaDevice,
        [a, b, into]: [&Tensor; 3],
        [rows, inner, columns]: [usize; 3],
        transposed: bool,
        scale: f32,
    ) -> Result<bool> {
        let number = match a.dtype() {
            DType::BF16 => sys::cudaDataType::CUDA_R_16BF,
            DType::F16 => sys::cudaDataType::CUDA_R_16F,
            DType::F32 => sys::cudaDataType::CUDA_R_32F,
            _ => return Ok(false),
        };
        let [rows, inner, columns] = [i32::try_from(rows)?, i32::try_from(inner)?, i32::try_from(columns)?];
        let one = 1f32;
        let [scale, one] = [&scale, &one].map(|number| std::ptr::from_ref(number).cast::<c_void>());
        let arguments = [Argument::Read(a), Argument::Read(b), Argument::Update(into)];
        let blas = device.cublas_handle();
        with_addresses(device, "matmul_add", &arguments, |addresses| {
            let &[a, b, into] = addresses else { unreachable!("an address for each argument") };
            let as_is = sys::cublasOperation_t::CUBLAS_OP_N;
            let (of_b, from_row_to_row) =
                if transposed { (sys::cublasOperation_t::CUBLAS_OP_T, inner) } else { (as_is, columns) };
            // SAFETY: the addresses are those of dense matrices of these sizes and this type, which live until after the
            // launch; the handle is the device's.
            unsafe {
                gemm_ex(
                    *blas.handle(),
                    of_b,
                    as_is,
                    columns,
                    rows,
                    inner,
                    scale,
                    b as *const c_void,
                    number,
                    from_row_to_row,
                    a as *const c_void,
                    number,
                    inner,
                    one,
                    into as *mut c_void,
                    number,
                    columns,
                    sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                    sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
                )
            }
            .w()?;
            Ok(true)
        })
    }
}
