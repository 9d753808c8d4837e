// What one warp can do: matrix products, loads of their fragments, asynchronous copies, reductions.
//
// The PTX is described in the PTX manual under mma.m16n8k16, ldmatrix and cp.async. With CUDA_EMULATION the same
// functions run on a CPU (testkit/cuda/cuda_shim.h).
#pragma once

#ifdef CUDA_EMULATION
#include "cuda_shim.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace attention {

using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;
using bf16 = __nv_bfloat16;
using f16 = __half;

constexpr u32 WARP = 32;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;
constexpr float INFINITE = __builtin_huge_valf();

template <typename T> struct alignas(4) Pair { T low, high; };

#ifdef CUDA_EMULATION

inline unsigned char *dynamic_shared() { return (unsigned char *)emulation::block.shared; }
inline u32 shared_address(const void *pointer) { return (u32)((const char *)pointer - emulation::block.shared); }
inline void load_matrices(u32 (&to)[4], u32 address, int line = __builtin_LINE()) {
    emulation::ldmatrix(to, address, false, line);
}
inline void load_matrices_transposed(u32 (&to)[4], u32 address, int line = __builtin_LINE()) {
    emulation::ldmatrix(to, address, true, line);
}
template <typename T>
inline void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, int line = __builtin_LINE()) {
    emulation::mma<T>(c, a, b0, b1, line);
}
inline void copy_16(u32 to, const void *from, bool valid) { emulation::copy_async(to, from, 16, valid); }
inline void copy_4(u32 to, const void *from, bool valid) { emulation::copy_async(to, from, 4, valid); }
inline void copy_commit() { emulation::copy_commit(); }
template <int PENDING> inline void copy_wait() { emulation::copy_wait(PENDING); }
inline float power_of_two(float x) { return exp2f(x); }
inline void begin() {}

#else

__device__ __forceinline__ unsigned char *dynamic_shared() {
    extern __shared__ __align__(128) unsigned char memory[];
    return memory;
}

__device__ __forceinline__ u32 shared_address(const void *pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

/// Four 8×8 matrices; lane 8j + r gives the address of row r of matrix j and receives two neighbours of row lane/4.
__device__ __forceinline__ void load_matrices(u32 (&to)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address));
}

__device__ __forceinline__ void load_matrices_transposed(u32 (&to)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address));
}

/// c[16, 8] += a[16, 16] · b[16, 8]
template <typename T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1);

template <>
__device__ __forceinline__ void multiply_add<bf16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void multiply_add<f16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Copies 16 bytes from global to shared memory in the background, or writes zeros.
__device__ __forceinline__ void copy_16(u32 to, const void *from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(to), "l"(__cvta_generic_to_global(from)), "r"(valid ? 16 : 0) : "memory");
}

__device__ __forceinline__ void copy_4(u32 to, const void *from, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :: "r"(to), "l"(__cvta_generic_to_global(from)), "r"(valid ? 4 : 0) : "memory");
}

/// Closes a group of copies.
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits until at most `PENDING` groups of this thread are under way.
template <int PENDING> __device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory");
}

/// The first statement of each kernel, as `BEGIN` in gpu/prelude.cuh: waits for the end of the launch before, and lets the next
/// one come near meanwhile.
__device__ __forceinline__ void begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;\ngriddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ float power_of_two(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

#endif

template <typename T> __device__ __forceinline__ T narrow(float value);
template <> __device__ __forceinline__ bf16 narrow<bf16>(float value) { return __float2bfloat16_rn(value); }
template <> __device__ __forceinline__ f16 narrow<f16>(float value) { return __float2half_rn(value); }
template <> __device__ __forceinline__ float narrow<float>(float value) { return value; }

__device__ __forceinline__ float widen(bf16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float widen(f16 value) { return __half2float(value); }
__device__ __forceinline__ float widen(float value) { return value; }

/// Two neighbours of a row as one register; the lower address is `low`.
template <typename T> __device__ __forceinline__ u32 pack(float low, float high);

#ifdef CUDA_EMULATION
template <typename T> inline u32 pack(float low, float high) {
    return (u32)narrow<T>(low).bits | (u32)narrow<T>(high).bits << 16;
}
#else
template <> __device__ __forceinline__ u32 pack<bf16>(float low, float high) {
    u32 result;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
}
template <> __device__ __forceinline__ u32 pack<f16>(float low, float high) {
    u32 result;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
}
#endif

/// Over the four lanes that hold one row of an accumulator.
__device__ __forceinline__ float row_maximum(float value) {
    value = fmaxf(value, __shfl_xor_sync(~0u, value, 1));
    return fmaxf(value, __shfl_xor_sync(~0u, value, 2));
}

__device__ __forceinline__ float row_sum(float value) {
    value += __shfl_xor_sync(~0u, value, 1);
    return value + __shfl_xor_sync(~0u, value, 2);
}

/// To a few units in the last place of 1; the hardware's tanh has 11 bits only.
__device__ __forceinline__ float hyperbolic_tangent(float x) {
    return 1.f - __fdividef(2.f, power_of_two(x * (2.f * LOG2_E)) + 1.f);
}

} // namespace attention
