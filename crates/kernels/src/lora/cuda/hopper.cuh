// What Hopper adds to a warp: the copy engine, and barriers in shared memory that count its bytes; and loads and counters that
// blocks share.
//
// The PTX is described in the PTX manual under cp.async.bulk.tensor and mbarrier. With CUDA_EMULATION the same
// functions run on a CPU (testkit/cuda/cuda_shim.h).
#pragma once
#include "../../attention/cuda/warp.cuh"

namespace lora {

using namespace attention;

/// A tensor map as the driver encodes it (CUtensorMap).
struct alignas(128) TensorMap {
    u64 opaque[16];
};

/// Whether the second-level cache is to keep what is read.
enum Keep { ONCE, KEPT };

#ifdef CUDA_EMULATION

inline void barrier_start(u32 barrier, u32 count) { emulation::barrier_start(barrier, count); }
inline void barriers_started() {}
inline void barrier_expect(u32 barrier, u32 bytes) { emulation::barrier_expect(barrier, bytes); }
inline void barrier_arrive(u32 barrier) { emulation::barrier_arrive(barrier); }
inline void barrier_wait(u32 barrier, u32 parity) { emulation::barrier_wait(barrier, parity); }
inline void copy_box(u32 to, const TensorMap *map, u32 column, u32 row, u32 barrier, Keep) {
    emulation::copy_box(to, map, column, row, barrier);
}
inline void finishers_meet(int line = __builtin_LINE()) { emulation::named_barrier(1, 256, line); }
inline void reads_done() {}
inline uint4 load_16(const void *from) { return *(const uint4 *)from; }
inline float4 load_fresh(const void *from) { return *(const float4 *)from; }
inline void wait_for(const u32 *counter, u32 count) { emulation::wait_for(counter, count); }
inline void count_released(u32 *counter) { ++*counter; }
inline u32 count(u32 *counter) { return (*counter)++; }
inline float low(u32 pair, bf16) { return widen(bf16{(uint16_t)pair}); }
inline float high(u32 pair, bf16) { return widen(bf16{(uint16_t)(pair >> 16)}); }
inline float low(u32 pair, f16) { return widen(f16{(uint16_t)pair}); }
inline float high(u32 pair, f16) { return widen(f16{(uint16_t)(pair >> 16)}); }

#else

__device__ __forceinline__ void barrier_start(u32 barrier, u32 count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" :: "r"(barrier), "r"(count) : "memory");
}
/// The copy engine sees the barriers from here on.
__device__ __forceinline__ void barriers_started() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
/// Arrives, and makes the barrier wait for so many bytes as well.
__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" :: "r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" :: "r"(barrier) : "memory");
}
/// Waits for the end of a barrier's even or odd phase.
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
    asm volatile("{\n.reg .pred done;\nagain_%=:\nmbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n@!done bra again_%=;\n}"
                 :: "r"(barrier), "r"(parity) : "memory");
}
/// Copies a box to shared memory; zeros stand for what lies outside of the tensor.
__device__ __forceinline__ void copy_box(u32 to, const TensorMap *map, u32 column, u32 row, u32 barrier, Keep keep) {
    u64 policy;
    if (keep == KEPT) asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    else asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1, {%2, %3}], [%4], %5;"
                 :: "r"(to), "l"(map), "r"(column), "r"(row), "r"(barrier), "l"(policy) : "memory");
}
/// What this thread has read of shared memory comes before what the copy engine writes there later.
__device__ __forceinline__ void reads_done() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
/// A barrier of the warps that finish.
__device__ __forceinline__ void finishers_meet() { asm volatile("bar.sync 1, 256;" ::: "memory"); }
/// 16 bytes that nobody writes meanwhile. Lanes read what lies together, so the first-level cache may have it.
__device__ __forceinline__ uint4 load_16(const void *from) {
    uint4 bits;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w) : "l"(from));
    return bits;
}
/// What another block wrote during this launch.
__device__ __forceinline__ float4 load_fresh(const void *from) {
    float4 values;
    asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(values.x), "=f"(values.y), "=f"(values.z), "=f"(values.w) : "l"(from) : "memory");
    return values;
}
__device__ __forceinline__ void wait_for(const u32 *counter, u32 count) {
    u32 found;
    do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(found) : "l"(counter) : "memory");
    while (found != count);
}
/// Counts one more, behind all that the warp has written before it met.
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

} // namespace lora
