// The dense layer of few rows with adapters against its definition in f64: on a CPU (with CUDA_EMULATION) or on a GPU (by nvcc).
//
//   clang++ -std=c++17 -O2 -DCUDA_EMULATION -I testkit/cuda -I crates/kernels/src/lora/cuda testkit/cuda/few_rows_test.cpp
//   nvcc -std=c++17 -O3 -arch=sm_90 -I crates/kernels/src/lora/cuda -x cu testkit/cuda/few_rows_test.cpp
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#define FEW_ROWS_PUBLISH(NAME, ...) static const Launch NAME##_launch = {__VA_ARGS__};
#include "few_rows.cu"

using namespace attention;

#ifdef CUDA_EMULATION
struct Memory {
    char *data; size_t bytes;
    explicit Memory(size_t bytes) : data(emulation::guarded(bytes)), bytes(bytes) {}
    Memory(const Memory &) = delete;
    ~Memory() { emulation::release(data, bytes); }
    void write(const void *from) { memcpy(data, from, bytes); }
    void read(void *to) { memcpy(to, data, bytes); }
};
template <class F> void start(F function, const Launch &launch, u32 blocks, const lora::Arguments &arguments) {
    emulation::launch(blocks, launch.threads, launch.shared_bytes, [&] { function(arguments); });
}
#else
#define CHECK(call) do { cudaError_t e = (call); if (e != cudaSuccess) { printf("%s: %s (line %d)\n", #call, cudaGetErrorString(e), __LINE__); exit(2); } } while (0)
struct Memory {
    char *data; size_t bytes;
    explicit Memory(size_t bytes) : bytes(bytes) { CHECK(cudaMalloc(&data, bytes)); CHECK(cudaMemset(data, 0xFF, bytes)); }
    Memory(const Memory &) = delete;
    ~Memory() { cudaFree(data); }
    void write(const void *from) { CHECK(cudaMemcpy(data, from, bytes, cudaMemcpyHostToDevice)); }
    void read(void *to) { CHECK(cudaMemcpy(to, data, bytes, cudaMemcpyDeviceToHost)); }
};
template <class F> void start(F function, const Launch &launch, u32 blocks, const lora::Arguments &arguments) {
    CHECK(cudaFuncSetAttribute((const void *)function, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)launch.shared_bytes));
    function<<<blocks, launch.threads, launch.shared_bytes>>>(arguments);
    CHECK(cudaDeviceSynchronize());
}
#endif

template <class T> T rounded(float value);
template <> bf16 rounded<bf16>(float value) { return __float2bfloat16_rn(value); }
template <> f16 rounded<f16>(float value) { return __float2half_rn(value); }
template <> float rounded<float>(float value) { return value; }
double number(bf16 value) { return __bfloat162float(value); }
double number(f16 value) { return __half2float(value); }
double number(float value) { return value; }

/// Random numbers on the device, and what they are.
template <class T> struct Tensor {
    std::vector<double> values;
    Memory memory;

    Tensor(size_t count, unsigned seed) : values(count), memory(count * sizeof(T)) {
        std::mt19937 generator(seed);
        std::uniform_real_distribution<float> uniform(-1, 1);
        std::vector<T> narrow(count);
        for (size_t i = 0; i < count; i++) narrow[i] = rounded<T>(uniform(generator)), values[i] = number(narrow[i]);
        memory.write(narrow.data());
    }
    u64 address() const { return (u64)memory.data; }
};

struct Case { u32 rows, inputs, outputs, rank, slots; bool bias; };

int failures = 0, checks = 0;

template <class T, class F> void check(const char *type, F function, const Launch &launch, const Case &c, double tolerance) {
    Tensor<T> x((size_t)c.rows * c.inputs, 1), w((size_t)c.outputs * c.inputs, 2), bias(c.outputs, 3);
    Tensor<T> a((size_t)c.slots * c.rank * c.inputs + 8, 4), b((size_t)c.slots * c.outputs * c.rank + 8, 5), y((size_t)c.rows * c.outputs, 6);
    Tensor<float> scales(c.slots + 4, 7), down(c.rows * c.rank + 4, 8);
    // Some rows share a slot, some have none.
    std::vector<u32> slots(c.rows), zeros(2, 0), counters(2);
    for (u32 m = 0; m < c.rows; m++) slots[m] = m % 5 == 3 ? ~0u : (m * 7) % (c.slots ? c.slots : 1);
    Memory slots_memory(4 * c.rows), counters_memory(8);
    slots_memory.write(slots.data()), counters_memory.write(zeros.data());
    lora::Arguments g{};
    g.x = x.address(), g.weight = w.address(), g.bias = c.bias ? bias.address() : 0, g.y = y.address();
    g.a = a.address(), g.b = b.address(), g.scales = scales.address(), g.slots = (u64)slots_memory.data;
    g.down = down.address(), g.counters = (u64)counters_memory.data;
    g.rows = c.rows, g.inputs = c.inputs, g.outputs = c.outputs, g.rank = c.rank, g.slot_count = c.slots;
    g.down_blocks = c.rows * c.rank / lora::RANKS;
    for (int run = 0; run < 2; run++) { // twice: the first leaves the counters as it found them
        start(function, launch, g.down_blocks + c.outputs / lora::COLUMNS, g);
        counters_memory.read(counters.data());
        if (counters[0] || counters[1]) failures++, printf("counters are left at %u and %u\n", counters[0], counters[1]);
    }
    std::vector<T> found(y.values.size());
    y.memory.read(found.data());
    double largest = 0, worst = 0;
    for (u32 m = 0; m < c.rows; m++) {
        std::vector<double> projected(c.rank, 0.);
        const bool has = slots[m] < c.slots;
        for (u32 j = 0; has && j < c.rank; j++) {
            for (u32 k = 0; k < c.inputs; k++) projected[j] += x.values[m * c.inputs + k] * a.values[((size_t)slots[m] * c.rank + j) * c.inputs + k];
            projected[j] *= scales.values[slots[m]];
        }
        for (u32 n = 0; n < c.outputs; n++) {
            double sum = c.bias ? bias.values[n] : 0;
            for (u32 k = 0; k < c.inputs; k++) sum += x.values[m * c.inputs + k] * w.values[(size_t)n * c.inputs + k];
            for (u32 j = 0; has && j < c.rank; j++) sum += projected[j] * b.values[((size_t)slots[m] * c.outputs + n) * c.rank + j];
            largest = fmax(largest, fabs(sum));
            const double error = fabs(sum - number(found[m * c.outputs + n]));
            worst = error <= worst ? worst : error; // a NaN is the worst
        }
    }
    checks++;
    if (!(worst <= tolerance * largest)) {
        failures++;
        printf("%s rows %u, %u to %u, rank %u, slots %u: error %.3g of %.3g\n", type, c.rows, c.inputs, c.outputs, c.rank, c.slots, worst, largest);
    }
}

int main() {
    const Case cases[] = {
        {16, 256, 64, 8, 16, true}, {1, 64, 32, 8, 1, false}, {7, 896, 96, 16, 3, true}, {9, 1088, 32, 16, 4, false},
        {16, 2048, 32, 16, 16, false}, {3, 4864, 32, 8, 2, true}, {16, 640, 64, 0, 0, true}, {8, 512, 32, 8, 8, false},
    };
    const Case wide[] = {{16, 512, 64, 64, 5, true}, {5, 320, 96, 24, 2, false}, {12, 2560, 32, 32, 12, true}};
#ifdef CUDA_EMULATION
    for (int schedule = 0; schedule < 3; schedule++) {
        emulation::schedule.late_copies = schedule != 1;
        emulation::schedule.warp_order = schedule;
#endif
        for (const Case &c : cases) {
            check<bf16>("bf16", few_rows_bf16_16, few_rows_bf16_16_launch, c, 4e-3);
            check<f16>("f16", few_rows_f16_16, few_rows_f16_16_launch, c, 5e-4);
        }
        for (const Case &c : wide) {
            check<bf16>("bf16", few_rows_bf16_64, few_rows_bf16_64_launch, c, 4e-3);
            check<f16>("f16", few_rows_f16_64, few_rows_f16_64_launch, c, 5e-4);
        }
#ifdef CUDA_EMULATION
    }
#endif
    printf("%d checks, %d failures\n", checks, failures);
    return failures != 0;
}
