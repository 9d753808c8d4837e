// What the programs that test kernels need on the host: memory of the device, real or emulated, and conversions. Included behind
// the kernels.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <cstring>

#ifdef CUDA_EMULATION
struct Memory {
    char *data; size_t bytes;
    explicit Memory(size_t bytes) : data(emulation::guarded(bytes)), bytes(bytes) {}
    Memory(const Memory &) = delete;
    ~Memory() { emulation::release(data, bytes); }
    void write(const void *from) { memcpy(data, from, bytes); }
    void read(void *to) const { memcpy(to, data, bytes); }
};
#else
#define CHECK(call) do { cudaError_t e = (call); if (e != cudaSuccess) { printf("%s: %s (line %d)\n", #call, cudaGetErrorString(e), __LINE__); exit(2); } } while (0)
struct Memory {
    char *data; size_t bytes;
    explicit Memory(size_t bytes) : bytes(bytes) { CHECK(cudaMalloc(&data, bytes ? bytes : 1)); CHECK(cudaMemset(data, 0xFF, bytes)); }
    Memory(const Memory &) = delete;
    ~Memory() { cudaFree(data); }
    void write(const void *from) { CHECK(cudaMemcpy(data, from, bytes, cudaMemcpyHostToDevice)); }
    void read(void *to) const { CHECK(cudaMemcpy(to, data, bytes, cudaMemcpyDeviceToHost)); }
};
#endif

/// nvcc replaces what is for the device only, `narrow` and `widen`, by an exit.
template <class T> T rounded(float value);
template <> inline attention::bf16 rounded<attention::bf16>(float value) { return __float2bfloat16_rn(value); }
template <> inline attention::f16 rounded<attention::f16>(float value) { return __float2half_rn(value); }
template <> inline float rounded<float>(float value) { return value; }
inline double number(attention::bf16 value) { return __bfloat162float(value); }
inline double number(attention::f16 value) { return __half2float(value); }
inline double number(float value) { return value; }
