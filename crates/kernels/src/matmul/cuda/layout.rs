//! What cuBLASLt is told of a product. It counts columns first: `C = A · B` row by row is `Cᵀ = Bᵀ · Aᵀ` for it.

use std::{ffi::c_void, mem::size_of, ptr::from_ref};

use candle_core::{
    DType, Error, Result, Tensor,
    cuda_backend::cudarc::cublaslt::{
        result::{
            CublasError, create_matmul_desc, create_matrix_layout, destroy_matmul_desc,
            destroy_matrix_layout, set_matmul_desc_attribute,
        },
        sys,
    },
};

/// A factor: something contiguous, or the transpose of it.
pub(super) struct Factor {
    /// What is contiguous.
    pub(super) tensor: Tensor,
    pub(super) transposed: bool,
}

/// All that a choice of a kernel depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) dtype: DType,
    pub(super) rows: usize,
    pub(super) inner: usize,
    pub(super) columns: usize,
    /// Of the first factor, of the second.
    pub(super) transposed: [bool; 2],
    pub(super) adds: bool,
    pub(super) has_bias: bool,
}

/// A product in the library's words.
pub(super) struct Product {
    pub(super) shape: Shape,
    pub(super) operation: sys::cublasLtMatmulDesc_t,
    /// The library's first factor is our second.
    pub(super) first: sys::cublasLtMatrixLayout_t,
    pub(super) second: sys::cublasLtMatrixLayout_t,
    pub(super) result: sys::cublasLtMatrixLayout_t,
}

impl Shape {
    /// The shape that stands for all with about as many rows: within a quarter.
    pub(super) fn about_as_many_rows(self) -> Self {
        let step = (self.rows.next_power_of_two() / 8).max(1);
        // Never the number of a real one: that is chosen for itself.
        Self { rows: usize::MAX - self.rows.div_ceil(step) * step, ..self }
    }
}

impl Factor {
    pub(super) fn of(tensor: &Tensor) -> Result<Option<Self>> {
        let tensor = tensor.detach();
        if tensor.is_contiguous() {
            return Ok(Some(Self { tensor, transposed: false }));
        }
        let turned = tensor.t()?;
        Ok(turned.is_contiguous().then_some(Self { tensor: turned, transposed: true }))
    }

    /// Elements from row to row.
    pub(super) fn line(&self) -> Result<usize> {
        self.tensor.dim(1)
    }
}

impl Product {
    /// `bias`: its address.
    pub(super) fn new(shape: Shape, bias: Option<u64>) -> Result<Self> {
        let Shape { dtype, rows, inner, columns, transposed: [left_turned, right_turned], .. } = shape;
        let number = match dtype {
            DType::F16 => sys::cudaDataType::CUDA_R_16F,
            _ => sys::cudaDataType::CUDA_R_16BF,
        };
        let (compute, scale) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
        let layout = |rows: usize, columns: usize| {
            checked(create_matrix_layout(number, rows as u64, columns as u64, rows as i64))
        };
        let turned =
            |is_turned, rows, columns| if is_turned { layout(columns, rows) } else { layout(rows, columns) };
        let product = Self {
            shape,
            operation: checked(create_matmul_desc(compute, scale))?,
            first: turned(right_turned, columns, inner)?,
            second: turned(left_turned, inner, rows)?,
            result: layout(columns, rows)?,
        };
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        // cuBLAS's own enum: 0 is as it is, 1 is the transpose.
        let operation = |is_turned: bool| i32::from(is_turned);
        product.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &operation(right_turned))?;
        product.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &operation(left_turned))?;
        if let Some(bias) = bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            product.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            product.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        Ok(product)
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
        // SAFETY: the library copies as many bytes as the attribute has: its enums are C's, an address is one of 64 bits.
        checked(unsafe {
            set_matmul_desc_attribute(
                self.operation,
                attribute,
                from_ref(value).cast::<c_void>(),
                size_of::<T>(),
            )
        })
    }
}

/// The library's word as an error of ours.
pub(super) fn checked<T>(result: std::result::Result<T, CublasError>) -> Result<T> {
    result.map_err(|CublasError(status)| Error::msg(format!("cuBLASLt refused a product: {status:?}")))
}

impl Drop for Product {
    fn drop(&mut self) {
        // SAFETY: they were made by `new`, and nothing that outlives `self` holds them. Freeing fails only for what is not there.
        unsafe {
            let _ = destroy_matmul_desc(self.operation);
            for layout in [self.first, self.second, self.result] {
                let _ = destroy_matrix_layout(layout);
            }
        }
    }
}
