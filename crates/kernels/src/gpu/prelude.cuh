// What the kernels need from CUDA, under the names that prelude.metal gives to the same things.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef unsigned int uint;
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned long long Index;

#define GLOBAL
#define LOCAL
#define SHARED __shared__
#define SHARED_POINTER(type) type *
#define FUNCTION static __device__ __forceinline__

// A kernel and its parameters, numbered in their order.
#define KERNEL(name, ...) extern "C" __global__ void name(__VA_ARGS__)
// The same for groups of at most so many threads: the compiler then leaves registers for all of them.
#define KERNEL_WITHIN(threads, name, ...) extern "C" __global__ void __launch_bounds__(threads) name(__VA_ARGS__)
// The first statement of each kernel: waits for the end of the launch before, and lets the next one come near meanwhile. Nothing in
// memory is touched before it.
#if __CUDA_ARCH__ >= 900
#define BEGIN() asm volatile("griddepcontrol.wait;\ngriddepcontrol.launch_dependents;" ::: "memory")
#else
#define BEGIN() ((void)0)
#endif
#define READ(type, name, index) const type *__restrict__ name
#define WRITE(type, name, index) type *__restrict__ name
#define UPDATE(type, name, index) type *name
#define VALUE(type, name, index) const type name

// Where a thread is. WARP and LANE: 32 threads that run together.
#define GROUP_X blockIdx.x
#define GROUP_Y blockIdx.y
#define GROUP_Z blockIdx.z
#define GROUPS_X gridDim.x
#define THREAD threadIdx.x
#define THREADS blockDim.x
#define BARRIER() __syncthreads()
// Brings what lies at an address nearer; only a hint.
#define FETCH(address) asm volatile("prefetch.global.L2 [%0];" ::"l"(address))

FUNCTION uint4 four(uint x, uint y, uint z, uint w) { return make_uint4(x, y, z, w); }
FUNCTION float as_float(uint bits) { return __uint_as_float(bits); }
FUNCTION uint as_uint(float value) { return __float_as_uint(value); }
FUNCTION float f16_to_float(ushort bits) { return __half2float(__ushort_as_half(bits)); }
FUNCTION ushort float_to_f16(float value) { return __half_as_ushort(__float2half_rn(value)); }
FUNCTION ushort float_to_bf16(float value) { return __bfloat16_as_ushort(__float2bfloat16_rn(value)); }
// Two at a time, as the hardware converts them; the first is the lower half.
FUNCTION uint float_pair_to_f16(float low, float high) {
    __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<uint *>(&pair);
}
FUNCTION uint float_pair_to_bf16(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint *>(&pair);
}

FUNCTION float warp_shuffle_xor(float value, uint mask) { return __shfl_xor_sync(~0u, value, mask); }
FUNCTION uint warp_shuffle_xor(uint value, uint mask) { return __shfl_xor_sync(~0u, value, mask); }
FUNCTION float fused_multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
FUNCTION float reciprocal_square_root(float value) { return rsqrtf(value); }
FUNCTION float exponential(float value) { return __expf(value); }
// exp(value - base), without care for results below 1e-38, which become zero.
FUNCTION float exponential_from(float value, float base) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"((value - base) * 1.4426950408889634f));
    return result;
}
FUNCTION float logarithm(float value) { return logf(value); }
FUNCTION float square_root(float value) { return sqrtf(value); }
FUNCTION float hyperbolic_tangent(float value) { return tanhf(value); }
FUNCTION float maximum(float a, float b) { return fmaxf(a, b); }
FUNCTION float minimum(float a, float b) { return fminf(a, b); }
FUNCTION uint minimum(uint a, uint b) { return a < b ? a : b; }
#define INFINITE __int_as_float(0x7f800000)
