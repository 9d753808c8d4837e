//! Products by cuBLAS. Large ones of half precision go through cuBLASLt, which has several kernels for a shape and whose
//! own first choice is 5 to 20 % slower than its best on an H200: they are tried once.

mod choice;
mod layout;

use std::ffi::c_void;

use candle_core::{
    CudaDevice, DType, Result, Tensor,
    cuda_backend::{
        WrapErr,
        cudarc::cublas::{result::gemm_ex, sys},
    },
};

use self::{
    choice::multiply,
    layout::{Factor, Product, Shape},
};
use crate::{
    fresh::Fresh,
    gpu::{Argument, cuda::with_addresses},
};

/// Where a product goes.
#[derive(Clone, Copy)]
pub(super) enum Target<'a> {
    /// Every element of this is written.
    New(&'a Fresh),
    /// It is added to this.
    Add(&'a Tensor),
}

/// Operations from which on a choice pays: some microseconds of the largest GPUs.
const LARGE: usize = 2_000_000_000;

/// What the fastest kernels load at once; also what the smallest lines of their matrices are a multiple of.
const ALIGNMENT: u64 = 16;

/// Whether [`large_product_into`] is for this product.
pub(super) fn is_large(a: &Tensor, b: &Tensor) -> Result<bool> {
    let ((rows, inner), columns) = (a.dims2()?, b.dim(1)?);
    let is_half = matches!(a.dtype(), DType::BF16 | DType::F16) && a.dtype() == b.dtype();
    Ok(is_half && 2 * rows * inner * columns >= LARGE)
}

/// `target = scale · a [M, K] · b [K, N] + bias`, or added to it; each factor contiguous or the transpose of something
/// contiguous. Says whether it was done: small products, and lines that are not whole accesses, are for others.
pub(super) fn large_product_into(
    device: &CudaDevice,
    a: &Tensor,
    b: &Tensor,
    bias: Option<&Tensor>,
    scale: f32,
    target: Target<'_>,
) -> Result<bool> {
    let (Some(left), Some(right)) = (Factor::of(a)?, Factor::of(b)?) else { return Ok(false) };
    let ((rows, inner), columns) = (a.dims2()?, b.dim(1)?);
    let line = ALIGNMENT as usize / a.dtype().size_in_bytes();
    let is_whole = [left.line()?, right.line()?, columns].iter().all(|length| length % line == 0);
    if !is_large(a, b)? || !is_whole {
        return Ok(false);
    }
    let shape = Shape {
        dtype: a.dtype(),
        rows,
        inner,
        columns,
        transposed: [left.transposed, right.transposed],
        adds: matches!(target, Target::Add(_)),
        has_bias: bias.is_some(),
    };
    let into = match target {
        Target::New(fresh) => Argument::Write(fresh),
        Target::Add(tensor) => Argument::Update(tensor),
    };
    let arguments = [
        Argument::Read(&left.tensor),
        Argument::Read(&right.tensor),
        into,
        Argument::Read(bias.unwrap_or(&left.tensor)),
    ];
    with_addresses(device, "matmul", &arguments, |addresses| {
        let &[a, b, into, bias] = addresses else { unreachable!("an address for each argument") };
        if [a, b, into, bias].iter().any(|address| address % ALIGNMENT != 0) {
            return Ok(false);
        }
        let product = Product::new(shape, shape.has_bias.then_some(bias))?;
        // SAFETY: the addresses are those of dense matrices of these sizes and this type, which live until after the launch.
        unsafe { multiply(device, &product, [a, b, into], scale) }
    })
}

/// `into [M, N] += scale · a [M, K] · b`, of any size and type. cuBLAS counts columns first: it is told of
/// `intoᵀ += scale · bᵀ · aᵀ`.
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
