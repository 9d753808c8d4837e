// The kernels that the host launches: `few_rows_{dtype}_{most}`, for up to so many outputs of a block.
#include "few_rows.cuh"

/// The most threads and dynamic shared bytes per block, and the most of its outputs.
struct Launch {
    attention::u32 threads, shared_bytes, columns;
};

// The host finds a kernel's `Launch` beside it in the module, as `{kernel}_launch`.
#ifndef FEW_ROWS_PUBLISH
#define FEW_ROWS_PUBLISH(NAME, ...) extern "C" __device__ const Launch NAME##_launch = {__VA_ARGS__};
#endif

#if defined(CUDA_EMULATION) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define BODY(TYPE, SHAPE) lora::few_rows<attention::TYPE, SHAPE>(a)
#else
#define BODY(TYPE, SHAPE)
#endif

#define KERNEL(TYPE, MOST, SHAPE) \
    extern "C" __global__ void __launch_bounds__(SHAPE::THREADS, 1) few_rows_##TYPE##_##MOST(const __grid_constant__ lora::Arguments a) { \
        BODY(TYPE, SHAPE); \
    } \
    FEW_ROWS_PUBLISH(few_rows_##TYPE##_##MOST, SHAPE::THREADS, lora::SHARED_BYTES, MOST) \
    static_assert(SHAPE::MOST_COLUMNS == MOST, "the name says it");

using Wide = lora::Shape<2, 1, 7>;
using Middle = lora::Shape<1, 2, 7>;
using Narrow = lora::Shape<1, 4, 3>;

#define ALL(TYPE) \
    KERNEL(TYPE, 112, Wide) \
    KERNEL(TYPE, 56, Middle) \
    KERNEL(TYPE, 24, Narrow)

ALL(bf16)
ALL(f16)
