// A dense layer for up to 16 rows with an adapter per row, in one launch:
//
//   y[m] = x[m] Wᵀ + bias + scale_s (x[m] A_sᵀ) B_sᵀ, where s is the slot of row m.
//
// So few rows cost what reading W costs. What counts is how much of it is under way: every lane copies 16 bytes of each of
// its rows of W, and of x at the same columns, to shared memory and reads them there itself, steps later; no barrier is in
// the way. Which of a product's 16 columns these are does not matter, as long as both factors agree; so they are the ones
// that lie together in memory.
//
// The blocks with the lowest indices compute x Aᵀ and count themselves as ready; the others wait for them when their own
// part of x Wᵀ is nearly done. Blocks start in the order of their indices, and the first ones wait for nobody.
#pragma once
#include "../../attention/cuda/warp.cuh"

namespace lora {

using namespace attention;

constexpr u32 ROWS = 16;
/// Outputs of a block, in tiles of 8.
constexpr u32 COLUMNS = 32, TILES = COLUMNS / 8;
/// The warps of a block share out the inputs in turns of 64: two steps of 32, together a cache line.
constexpr u32 WARPS = 8, THREADS = WARPS * WARP, STEP = 32;
/// Steps that are under way; each is six pieces of 16 bytes of a lane.
constexpr u32 DEPTH = 4, PIECES = COLUMNS / 8 + ROWS / 8, STEP_BYTES = PIECES * WARP * 16;
/// Ranks of one block of x Aᵀ.
constexpr u32 RANKS = 8;

/// The host fills the same struct: addresses first, then numbers.
struct Arguments {
    /// x `[rows, inputs]`, W `[outputs, inputs]`, bias `[outputs]` or 0, y `[rows, outputs]`
    u64 x, weight, bias, y;
    /// A `[slots, rank, inputs]`, B `[slots, outputs, rank]`, a scale per slot, a slot per row; a row whose slot is beyond
    /// all has no adapter.
    u64 a, b, scales, slots;
    /// Of the adapters' memory: `scale · x Aᵀ [rows, rank]`, and two counters that are zero before and after.
    u64 down, counters;
    u32 rows, inputs, outputs, rank, slot_count;
    /// Blocks that compute x Aᵀ: `rows · rank / RANKS`, or 0 without adapters.
    u32 down_blocks;
};

/// In shared memory: what is under way, the adapters' B for the block's outputs, and x Aᵀ. A warp's sums come to lie
/// where its own steps were.
constexpr u32 WARP_BYTES = DEPTH * STEP_BYTES, UP_AT = WARPS * WARP_BYTES;
static_assert(WARP_BYTES >= ROWS * COLUMNS * 4, "a warp's sums fit");
constexpr u32 shared_bytes(u32 most_rank) { return UP_AT + ROWS * COLUMNS * most_rank * 2 + ROWS * most_rank * 4; }

#ifdef CUDA_EMULATION

inline void copy_line(u32 to, const void *from, bool valid) { copy_16(to, from, valid); }
inline uint4 load_once(const void *from) { return *(const uint4 *)from; }
inline uint4 load_kept(const void *from) { return *(const uint4 *)from; }
inline float4 load_fresh(const void *from) { return *(const float4 *)from; }
inline void wait_for(const u32 *counter, u32 count) {
    if (*counter != count) emulation::fail("waits for blocks that come later");
}
inline void count_released(u32 *counter) { ++*counter; }
inline u32 count(u32 *counter) { return (*counter)++; }
inline float low(u32 pair, bf16) { return widen(bf16{(uint16_t)pair}); }
inline float high(u32 pair, bf16) { return widen(bf16{(uint16_t)(pair >> 16)}); }
inline float low(u32 pair, f16) { return widen(f16{(uint16_t)pair}); }
inline float high(u32 pair, f16) { return widen(f16{(uint16_t)(pair >> 16)}); }

#else

/// As copy_16; the rest of the cache line is wanted soon.
__device__ __forceinline__ void copy_line(u32 to, const void *from, bool valid) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                 :: "r"(to), "l"(__cvta_generic_to_global(from)), "r"(valid ? 16 : 0) : "memory");
}
/// 16 bytes that no other block reads.
__device__ __forceinline__ uint4 load_once(const void *from) {
    uint4 bits;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w) : "l"(from));
    return bits;
}
/// 16 bytes that others read as well.
__device__ __forceinline__ uint4 load_kept(const void *from) {
    uint4 bits;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w) : "l"(from));
    return bits;
}
/// What another block wrote during this launch.
__device__ __forceinline__ float4 load_fresh(const void *from) { return __ldcg((const float4 *)from); }
__device__ __forceinline__ void wait_for(const u32 *counter, u32 count) {
    u32 found;
    do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(found) : "l"(counter) : "memory");
    while (found != count);
}
/// Counts one more, behind all that the block has written before its last barrier.
__device__ __forceinline__ void count_released(u32 *counter) {
    __threadfence();
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" :: "l"(counter) : "memory");
}
__device__ __forceinline__ u32 count(u32 *counter) { return atomicAdd(counter, 1); }
__device__ __forceinline__ float low(u32 pair, bf16) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high(u32 pair, bf16) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ float low(u32 pair, f16) { return __half2float(__ushort_as_half((unsigned short)pair)); }
__device__ __forceinline__ float high(u32 pair, f16) { return __half2float(__ushort_as_half((unsigned short)(pair >> 16))); }

#endif

template <typename T> __device__ __forceinline__ const T *at(u64 address, u64 index) {
    return reinterpret_cast<const T *>(address) + index;
}

/// The product of eight neighbours, given in f32 and as bits.
template <typename T> __device__ __forceinline__ float dot(const float (&values)[8], uint4 bits, float sum) {
    sum = values[0] * low(bits.x, T()) + sum;
    sum = values[1] * high(bits.x, T()) + sum;
    sum = values[2] * low(bits.y, T()) + sum;
    sum = values[3] * high(bits.y, T()) + sum;
    sum = values[4] * low(bits.z, T()) + sum;
    sum = values[5] * high(bits.z, T()) + sum;
    sum = values[6] * low(bits.w, T()) + sum;
    return values[7] * high(bits.w, T()) + sum;
}

template <typename T> __device__ __forceinline__ void widen_eight(uint4 bits, float (&to)[8]) {
    to[0] = low(bits.x, T()), to[1] = high(bits.x, T());
    to[2] = low(bits.y, T()), to[3] = high(bits.y, T());
    to[4] = low(bits.z, T()), to[5] = high(bits.z, T());
    to[6] = low(bits.w, T()), to[7] = high(bits.w, T());
}

/// `RANKS` ranks of one row of `scale · x Aᵀ`.
template <typename T> __device__ __forceinline__ void project(const Arguments &g) {
    const u32 blocks = g.rank / RANKS, row = blockIdx.x / blocks, first = blockIdx.x % blocks * RANKS;
    const u32 slot = *at<u32>(g.slots, row), lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float *partial = reinterpret_cast<float *>(dynamic_shared()); // [WARPS, RANKS]
    if (slot < g.slot_count) {
        const T *x = at<T>(g.x, (u64)row * g.inputs), *a = at<T>(g.a, ((u64)slot * g.rank + first) * g.inputs);
        float sums[RANKS] = {};
        for (u32 k = threadIdx.x * 8; k < g.inputs; k += THREADS * 8) {
            uint4 factors[RANKS], bits = load_kept(x + k);
#pragma unroll
            for (u32 j = 0; j < RANKS; j++) factors[j] = load_once(a + (u64)j * g.inputs + k);
            float values[8];
            widen_eight<T>(bits, values);
#pragma unroll
            for (u32 j = 0; j < RANKS; j++) sums[j] = dot<T>(values, factors[j], sums[j]);
        }
#pragma unroll
        for (u32 j = 0; j < RANKS; j++) {
            for (u32 mask = WARP / 2; mask > 0; mask /= 2) sums[j] += __shfl_xor_sync(~0u, sums[j], mask);
            if (lane == j) partial[warp * RANKS + j] = sums[j];
        }
        __syncthreads();
        if (threadIdx.x < RANKS) {
            float sum = 0;
            for (u32 other = 0; other < WARPS; other++) sum += partial[other * RANKS + threadIdx.x];
            float *down = const_cast<float *>(at<float>(g.down, (u64)row * g.rank + first));
            down[threadIdx.x] = *at<float>(g.scales, slot) * sum;
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) count_released(const_cast<u32 *>(at<u32>(g.counters, 0)));
}

/// A lane's place: row `lane / 4` of tiles and of x, and 8 columns of each step.
template <typename T> struct Place {
    const T *weight, *x;
    u32 shared;
    u64 stride; // of 8 rows
    bool has_low, has_high;

    __device__ __forceinline__ Place(const Arguments &g, u32 tile, u32 warp, u32 lane) {
        const u32 row = lane / 4, column = warp * 2 * STEP + lane % 4 * 8;
        weight = at<T>(g.weight, ((u64)tile * COLUMNS + row) * g.inputs + column);
        x = at<T>(g.x, (u64)row * g.inputs + column);
        shared = shared_address(dynamic_shared()) + warp * WARP_BYTES + lane * 16;
        stride = 8 * (u64)g.inputs;
        has_low = row < g.rows, has_high = row + 8 < g.rows;
    }
    __device__ __forceinline__ void copy(u32 step) const {
        const u32 column = step / 2 * (WARPS * 2 * STEP) + step % 2 * STEP;
        const u32 to = shared + step % DEPTH * STEP_BYTES;
#pragma unroll
        for (u32 n = 0; n < TILES; n++) copy_line(to + n * WARP * 16, weight + n * stride + column, true);
        copy_line(to + TILES * WARP * 16, x + (has_low ? column : 0), has_low);
        copy_line(to + (TILES + 1) * WARP * 16, x + (has_high ? stride + column : 0), has_high);
    }
};

/// c += x Wᵀ for the 32 columns of a step, of which a lane has two pieces of x and one of each tile.
template <typename T> __device__ __forceinline__ void multiply(float (&sums)[TILES][4], const uint4 *pieces) {
    const uint4 low = pieces[TILES * WARP], high = pieces[(TILES + 1) * WARP];
    const u32 first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
    for (u32 n = 0; n < TILES; n++) {
        const uint4 weights = pieces[n * WARP];
        multiply_add<T>(sums[n], first, weights.x, weights.y);
        multiply_add<T>(sums[n], second, weights.z, weights.w);
    }
}

/// Starts copies of the adapters' B for the outputs of a block: `[rows, COLUMNS, rank]`.
template <typename T> __device__ __forceinline__ void fetch_up(const Arguments &g, u32 tile, T *shared) {
    const u32 pieces = COLUMNS * g.rank / 8; // of a row
#pragma unroll 4
    for (u32 i = threadIdx.x; i < g.rows * pieces; i += THREADS) {
        const u32 slot = *at<u32>(g.slots, i / pieces);
        if (slot >= g.slot_count) continue;
        const T *from = at<T>(g.b, ((u64)slot * g.outputs + tile * COLUMNS) * g.rank + i % pieces * 8);
        copy_line(shared_address(shared + 8 * i), from, true);
    }
}

/// Waits for x Aᵀ and brings it to shared memory, by one warp; its first lane counts the block among those that have it.
template <u32 MOST_RANK> __device__ __forceinline__ u32 fetch_down(const Arguments &g, u32 lane, float4 *shared) {
    u32 *counters = const_cast<u32 *>(at<u32>(g.counters, 0));
    wait_for(counters, g.down_blocks);
    const u32 before = lane == 0 ? count(counters + 1) : 0, pieces = g.rows * g.rank / 4;
#pragma unroll 2
    for (u32 i = lane; i < ROWS * MOST_RANK / 4; i += WARP)
        if (i < pieces) shared[i] = load_fresh(at<float4>(g.down, i));
    return before;
}

/// Two neighbouring outputs of one row by each thread.
template <typename T>
__device__ __forceinline__ void finish(const Arguments &g, u32 tile, const T *up, const float *down) {
    const u32 row = threadIdx.x / (COLUMNS / 2), pair = threadIdx.x % (COLUMNS / 2);
    if (row >= g.rows) return;
    float2 sum = make_float2(0, 0);
#pragma unroll
    for (u32 warp = 0; warp < WARPS; warp++) {
        const float2 part = reinterpret_cast<const float2 *>(dynamic_shared() + warp * WARP_BYTES)[row * (COLUMNS / 2) + pair];
        sum.x += part.x, sum.y += part.y;
    }
    const u32 column = tile * COLUMNS + 2 * pair;
    if (g.bias) {
        const u32 bias = *at<u32>(g.bias, column / 2);
        sum.x += low(bias, T()), sum.y += high(bias, T());
    }
    if (g.down_blocks && *at<u32>(g.slots, row) < g.slot_count) {
        const T *left = up + (row * COLUMNS + 2 * pair) * g.rank;
        for (u32 rank = 0; rank < g.rank; rank += RANKS) {
            float values[RANKS];
#pragma unroll
            for (u32 j = 0; j < RANKS; j++) values[j] = down[row * g.rank + rank + j];
            sum.x = dot<T>(values, *reinterpret_cast<const uint4 *>(left + rank), sum.x);
            sum.y = dot<T>(values, *reinterpret_cast<const uint4 *>(left + g.rank + rank), sum.y);
        }
    }
    *const_cast<u32 *>(at<u32>(g.y, ((u64)row * g.outputs + column) / 2)) = pack<T>(sum.x, sum.y);
}

/// `COLUMNS` outputs of all rows.
template <typename T, u32 MOST_RANK> __device__ __forceinline__ void base(const Arguments &g) {
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, tile = blockIdx.x - g.down_blocks;
    T *up = reinterpret_cast<T *>(dynamic_shared() + UP_AT); // [rows, COLUMNS, rank]
    float *down = reinterpret_cast<float *>(dynamic_shared() + UP_AT + ROWS * COLUMNS * MOST_RANK * 2); // [rows, rank]
    unsigned char *own = dynamic_shared() + warp * WARP_BYTES;
    const u32 groups = g.inputs / (2 * STEP), steps = groups > warp ? (groups - warp + WARPS - 1) / WARPS * 2 : 0;
    const Place<T> place(g, tile, warp, lane);
#pragma unroll
    for (u32 step = 0; step < DEPTH; step++) {
        if (step < steps) place.copy(step);
        copy_commit();
    }
    if (g.down_blocks) fetch_up<T>(g, tile, up); // a part of the next group
    float sums[TILES][4] = {};
    const uint4 *pieces = reinterpret_cast<const uint4 *>(own) + lane;
    u32 step = 0;
#pragma unroll 1
    for (; step + DEPTH < steps; step++) {
        copy_wait<DEPTH - 1>();
        multiply<T>(sums, pieces + step % DEPTH * (STEP_BYTES / 16));
        place.copy(step + DEPTH);
        copy_commit();
    }
    u32 before = 0;
    if (g.down_blocks && warp == 0) before = fetch_down<MOST_RANK>(g, lane, reinterpret_cast<float4 *>(down));
    copy_commit();
#pragma unroll 1
    for (; step < steps; step++) {
        copy_wait<DEPTH - 1>();
        multiply<T>(sums, pieces + step % DEPTH * (STEP_BYTES / 16));
        copy_commit();
    }
    copy_wait<0>();
    __syncwarp(); // all lanes have read their steps
#pragma unroll
    for (u32 n = 0; n < TILES; n++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            float2 *to = reinterpret_cast<float2 *>(own) + (lane / 4 + 8 * half) * (COLUMNS / 2) + 4 * n + lane % 4;
            *to = make_float2(sums[n][2 * half], sums[n][2 * half + 1]);
        }
    __syncthreads();
    finish<T>(g, tile, up, down);
    // The last block that has x Aᵀ leaves the counters as they were.
    if (g.down_blocks && threadIdx.x == 0 && before == gridDim.x - g.down_blocks - 1) {
        u32 *counters = const_cast<u32 *>(at<u32>(g.counters, 0));
        counters[0] = counters[1] = 0;
    }
}

template <typename T, u32 MOST_RANK> __device__ __forceinline__ void few_rows(const Arguments &g) {
    if (blockIdx.x < g.down_blocks) project<T>(g);
    else base<T, MOST_RANK>(g);
}

} // namespace lora
