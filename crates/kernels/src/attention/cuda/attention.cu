// The kernels that the host launches, by name: `attention_{pass}_{dtype}_{columns}`, where `columns` is the head size
// rounded up to 64, 96, 128 or 256. The comment beside each shape says how many rows (M) one entry of the tile list
// covers. The `_short` ones are for calls with few tiles: smaller ones, which fill the GPU better.
#include "exact.cuh"

using namespace attention;

/// How to launch a kernel: threads and dynamic shared bytes per block, and the rows (M) of one entry of the tile list.
struct Launch {
    u32 threads, shared_bytes, rows;
};

// The host finds a kernel's `Launch` beside it in the module, as `{kernel}_launch`.
#ifndef ATTENTION_PUBLISH
#define ATTENTION_PUBLISH(NAME, ...) extern "C" __device__ const Launch NAME##_launch = {__VA_ARGS__};
#endif

#define KERNEL(NAME, BODY, ARGUMENTS, THREADS, SHARED_BYTES, ROWS, BLOCKS) \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) NAME(const __grid_constant__ ARGUMENTS a) { begin(); BODY(a); } \
    ATTENTION_PUBLISH(NAME, THREADS, SHARED_BYTES, ROWS)
#define SHAPED(NAME, BODY, ARGUMENTS, BLOCKS, ...) \
    KERNEL(NAME, (BODY<__VA_ARGS__>), ARGUMENTS, (__VA_ARGS__::THREADS), (__VA_ARGS__::SHARED_BYTES), (__VA_ARGS__::M), BLOCKS)
#define FORWARD(PASS, TYPE, D, BLOCKS, ...) \
    SHAPED(attention_##PASS##_##TYPE##_##D, forward, ForwardArguments, BLOCKS, ForwardShape<TYPE, D, __VA_ARGS__>)
#define QUERIES(PASS, TYPE, D, BLOCKS, ...) \
    SHAPED(attention_##PASS##_##TYPE##_##D, backward_queries, BackwardArguments, BLOCKS, QueriesShape<TYPE, D, __VA_ARGS__>)
#define KEYS(TYPE, D, BLOCKS, ...) \
    SHAPED(attention_backward_keys_##TYPE##_##D, backward_keys, BackwardArguments, BLOCKS, KeysShape<TYPE, D, __VA_ARGS__>)
#define ELEMENTWISE(NAME, BODY, ARGUMENTS) KERNEL(NAME, BODY, ARGUMENTS, 256, 0, 0, 1)

// M, N, warps over rows, warps over keys, chunked, queries in registers
#define ALL(TYPE) \
    FORWARD(forward, TYPE, 64, 2, 128, 64, 4, 1, false, true) \
    FORWARD(forward_short, TYPE, 64, 3, 64, 64, 4, 1, false, true) \
    FORWARD(forward, TYPE, 96, 2, 128, 64, 4, 1, false, false) \
    FORWARD(forward, TYPE, 128, 2, 128, 64, 4, 1, false, false) \
    FORWARD(forward, TYPE, 256, 1, 64, 32, 4, 1, false, false) \
    FORWARD(cached, TYPE, 64, 2, 64, 64, 4, 1, true, true) \
    FORWARD(cached, TYPE, 96, 2, 64, 64, 4, 1, true, false) \
    FORWARD(cached, TYPE, 128, 2, 64, 64, 4, 1, true, false) \
    FORWARD(cached, TYPE, 256, 1, 64, 32, 4, 1, true, false) \
    FORWARD(decode, TYPE, 64, 1, 16, 128, 1, 4, true, true) \
    FORWARD(decode, TYPE, 96, 1, 16, 64, 1, 4, true, true) \
    FORWARD(decode, TYPE, 128, 1, 16, 64, 1, 4, true, true) \
    FORWARD(decode, TYPE, 256, 1, 16, 64, 1, 4, true, false, 2) \
    QUERIES(backward_queries, TYPE, 64, 2, 128, 32, 4, true) \
    QUERIES(backward_queries_short, TYPE, 64, 3, 64, 64, 4, true) \
    QUERIES(backward_queries, TYPE, 96, 2, 64, 32, 4, false) \
    QUERIES(backward_queries, TYPE, 128, 1, 128, 32, 4, false) \
    QUERIES(backward_queries, TYPE, 256, 1, 64, 16, 4, false) \
    KEYS(TYPE, 64, 2, 64, 64, 4, 1, 64, 64, true) \
    KEYS(TYPE, 96, 2, 64, 32, 4, 1, 32, 96, false) \
    KEYS(TYPE, 128, 1, 64, 64, 4, 1, 32, 128, false) \
    KEYS(TYPE, 256, 1, 64, 16, 4, 1, 16, 128, false) \
    ELEMENTWISE(attention_merge_##TYPE, merge<TYPE>, ForwardArguments) \
    ELEMENTWISE(attention_delta_##TYPE, delta<TYPE>, BackwardArguments) \
    ELEMENTWISE(attention_reduce_##TYPE, reduce<TYPE>, BackwardArguments)

ALL(bf16)
ALL(f16)

// D, warps
#define EXACT(D, WARPS) \
    SHAPED(attention_forward_f32_##D, forward_exact, ForwardArguments, 1, ExactForward<D, WARPS, false>) \
    SHAPED(attention_cached_f32_##D, forward_exact, ForwardArguments, 1, ExactForward<D, WARPS, true>) \
    SHAPED(attention_decode_f32_##D, forward_exact, ForwardArguments, 1, ExactForward<D, 1, true>) \
    SHAPED(attention_backward_queries_f32_##D, backward_queries_exact, BackwardArguments, 1, ExactBackward<D, WARPS>) \
    SHAPED(attention_backward_keys_f32_##D, backward_keys_exact, BackwardArguments, 1, ExactBackward<D, WARPS>)

EXACT(64, 4)
EXACT(128, 4)
EXACT(256, 2)
ELEMENTWISE(attention_merge_f32, merge<float>, ForwardArguments)
ELEMENTWISE(attention_delta_f32, delta<float>, BackwardArguments)
ELEMENTWISE(attention_reduce_f32, reduce<float>, BackwardArguments)
