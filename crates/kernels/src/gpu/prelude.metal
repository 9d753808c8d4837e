// What the kernels need from Metal, under the names that prelude.cuh gives to the same things.
#include <metal_stdlib>
using namespace metal;

typedef ulong Index;

#define GLOBAL device
#define LOCAL thread
#define SHARED threadgroup
#define SHARED_POINTER(type) threadgroup type *
#define FUNCTION static inline

// A kernel and its parameters, numbered in their order.
#define KERNEL(name, ...)                                                                                    \
    kernel void name(__VA_ARGS__, uint3 group_index_ [[threadgroup_position_in_grid]],                       \
                     uint3 group_count_ [[threadgroups_per_grid]],                                           \
                     uint3 thread_index_ [[thread_position_in_threadgroup]],                                 \
                     uint3 thread_count_ [[threads_per_threadgroup]])
// The same for groups of at most so many threads: the compiler then leaves registers for all of them.
#define KERNEL_WITHIN(threads, name, ...)                                                                    \
    [[max_total_threads_per_threadgroup(threads)]] KERNEL(name, __VA_ARGS__)
// The first statement of each kernel: see prelude.cuh. Metal lets a launch begin when the one before it has ended.
#define BEGIN() ((void)0)
#define READ(type, name, index) device const type *name [[buffer(index)]]
#define WRITE(type, name, index) device type *name [[buffer(index)]]
#define UPDATE(type, name, index) device type *name [[buffer(index)]]
#define VALUE(type, name, index) constant type &name [[buffer(index)]]

// Where a thread is. WARP and LANE: 32 threads that run together.
#define GROUP_X group_index_.x
#define GROUP_Y group_index_.y
#define GROUP_Z group_index_.z
#define GROUPS_X group_count_.x
#define THREAD thread_index_.x
#define THREADS thread_count_.x
#define BARRIER() threadgroup_barrier(mem_flags::mem_threadgroup)
// Metal has no such hint.
#define FETCH(address) ((void)0)

FUNCTION uint4 four(uint x, uint y, uint z, uint w) { return uint4(x, y, z, w); }
FUNCTION float as_float(uint bits) { return as_type<float>(bits); }
FUNCTION uint as_uint(float value) { return as_type<uint>(value); }
FUNCTION float f16_to_float(ushort bits) { return float(as_type<half>(bits)); }
FUNCTION ushort float_to_f16(float value) { return as_type<ushort>(half(value)); }
// To the nearest, ties to even; what is not a number stays so. Older Metal has no such type of its own.
FUNCTION ushort float_to_bf16(float value) {
    uint bits = as_type<uint>(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return ushort(bits >> 16) | ushort(0x40);
    return ushort((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
FUNCTION uint float_pair_to_f16(float low, float high) { return as_type<uint>(half2(half(low), half(high))); }
FUNCTION uint float_pair_to_bf16(float low, float high) {
    return uint(float_to_bf16(low)) | (uint(float_to_bf16(high)) << 16);
}

FUNCTION float warp_shuffle_xor(float value, uint mask) { return simd_shuffle_xor(value, ushort(mask)); }
FUNCTION uint warp_shuffle_xor(uint value, uint mask) { return simd_shuffle_xor(value, ushort(mask)); }
FUNCTION float fused_multiply_add(float a, float b, float c) { return fma(a, b, c); }
FUNCTION float reciprocal_square_root(float value) { return precise::rsqrt(value); }
FUNCTION float exponential(float value) { return precise::exp(value); }
FUNCTION float exponential_from(float value, float base) { return precise::exp(value - base); }
FUNCTION float logarithm(float value) { return precise::log(value); }
FUNCTION float square_root(float value) { return precise::sqrt(value); }
FUNCTION float hyperbolic_tangent(float value) { return precise::tanh(value); }
FUNCTION float maximum(float a, float b) { return max(a, b); }
FUNCTION float minimum(float a, float b) { return min(a, b); }
FUNCTION uint minimum(uint a, uint b) { return min(a, b); }
#define INFINITE as_type<float>(0x7f800000u)
