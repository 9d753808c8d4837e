// The kernels that the host launches: `together_{pass}_{dtype}_{blocks}`, for as many blocks of eight ranks: of all members
// together, or of each one for `through`.
#include "together_back.cuh"

/// How to launch a kernel: threads and dynamic shared bytes per block, and its rows: those of a warp for `up`, one tile of each
/// of a strip's warps for `outers`.
struct Launch {
    attention::u32 threads, shared_bytes, rows;
};

// The host finds a kernel's `Launch` beside it in the module, as `{kernel}_launch`.
#ifndef TOGETHER_PUBLISH
#define TOGETHER_PUBLISH(NAME, ...) extern "C" __device__ const Launch NAME##_launch = {__VA_ARGS__};
#endif

#define KERNEL(NAME, BODY, SHARED_BYTES, ROWS, RESIDENT) \
    extern "C" __global__ void __launch_bounds__(together::THREADS, RESIDENT) NAME(const __grid_constant__ together::Arguments a) { \
        attention::begin(); \
        BODY(a); \
    } \
    TOGETHER_PUBLISH(NAME, together::THREADS, SHARED_BYTES, ROWS)

// Blocks of threads that a multiprocessor is to hold come last.
#define PULL(TYPE, BLOCKS) \
    KERNEL(together_pull_##TYPE##_##BLOCKS, (together::pull<attention::TYPE, BLOCKS>), together::SHARED_BYTES, \
           together::BLOCK_ROWS, 2)
#define THROUGH(TYPE, BLOCKS) \
    KERNEL(together_through_##TYPE##_##BLOCKS, (together::through<attention::TYPE, BLOCKS>), together::SHARED_BYTES, \
           together::BLOCK_ROWS, 2)
#define OUTERS(TYPE, BLOCKS, RESIDENT) \
    KERNEL(together_outers_##TYPE##_##BLOCKS, (together::outers<attention::TYPE, BLOCKS>), together::outer_bytes(BLOCKS), \
           together::ROW_WARPS * together::TILE, RESIDENT)

#define ALL(TYPE) \
    PULL(TYPE, 2) \
    PULL(TYPE, 4) \
    PULL(TYPE, 6) \
    KERNEL(together_up_##TYPE, together::up<attention::TYPE>, together::FACTORS_AT, together::UP_ROWS, 2) \
    THROUGH(TYPE, 1) \
    THROUGH(TYPE, 2) \
    OUTERS(TYPE, 2, 2) \
    OUTERS(TYPE, 4, 2) \
    OUTERS(TYPE, 6, 1)

ALL(bf16)
ALL(f16)
