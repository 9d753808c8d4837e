// The kernels that the host launches: `few_rows_{dtype}_{most}`, for adapters of up to 16 or 64 ranks.
#include "few_rows.cuh"

/// How to launch a kernel: threads and dynamic shared bytes per block, and its outputs.
struct Launch {
    attention::u32 threads, shared_bytes, rows;
};

// The host finds a kernel's `Launch` beside it in the module, as `{kernel}_launch`.
#ifndef FEW_ROWS_PUBLISH
#define FEW_ROWS_PUBLISH(NAME, ...) extern "C" __device__ const Launch NAME##_launch = {__VA_ARGS__};
#endif

#define KERNEL(TYPE, MOST_RANK) \
    extern "C" __global__ void __launch_bounds__(lora::THREADS, 2) few_rows_##TYPE##_##MOST_RANK(const __grid_constant__ lora::Arguments a) { \
        lora::few_rows<attention::TYPE, MOST_RANK>(a); \
    } \
    FEW_ROWS_PUBLISH(few_rows_##TYPE##_##MOST_RANK, lora::THREADS, lora::shared_bytes(MOST_RANK), lora::COLUMNS)

KERNEL(bf16, 16)
KERNEL(bf16, 64)
KERNEL(f16, 16)
KERNEL(f16, 64)
