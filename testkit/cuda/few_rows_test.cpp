// The dense layer of few rows with adapters against its definition in f64, emulated on a CPU.
//
//   clang++ -std=c++17 -O2 -DCUDA_EMULATION -I testkit/cuda -I crates/kernels/src/lora/cuda testkit/cuda/few_rows_test.cpp
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#define FEW_ROWS_PUBLISH(NAME, ...) static const Launch NAME##_launch = {__VA_ARGS__};
#include "few_rows.cu"
#include "host.h"

using namespace attention;

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

struct Case { u32 rows, inputs, outputs, rank, slots; bool bias; u32 columns, stages; };

lora::TensorMap map(u64 address, u32 rows, u32 inputs, u32 box_rows) {
    const emulation::MatrixMap matrix{address, rows, inputs, box_rows};
    lora::TensorMap map{};
    memcpy(&map, &matrix, sizeof(matrix));
    return map;
}

int failures = 0, checks = 0;

template <class T, class S, class F> void check(const char *type, F function, const Case &c, double tolerance) {
    Tensor<T> x((size_t)c.rows * c.inputs, 1), w((size_t)c.outputs * c.inputs, 2), bias(c.outputs, 3);
    Tensor<T> a((size_t)c.slots * c.rank * c.inputs + 8, 4), b((size_t)c.slots * c.outputs * c.rank + 8, 5), y((size_t)c.rows * c.outputs, 6);
    const u32 slices = (c.inputs + lora::SLICE - 1) / lora::SLICE;
    Tensor<float> scales(c.slots + 4, 7), down(slices * c.rows * c.rank + 4, 8);
    // Some rows share a slot, some have none.
    std::vector<u32> slots(c.rows), zeros(2, 0), counters(2);
    for (u32 m = 0; m < c.rows; m++) slots[m] = m % 5 == 3 ? ~0u : (m * 7) % (c.slots ? c.slots : 1);
    Memory slots_memory(4 * c.rows), counters_memory(8);
    slots_memory.write(slots.data()), counters_memory.write(zeros.data());
    lora::Arguments g{};
    g.weight_map = map(w.address(), c.outputs, c.inputs, c.columns), g.x_map = map(x.address(), c.rows, c.inputs, lora::ROWS);
    g.x = x.address(), g.bias = c.bias ? bias.address() : 0, g.y = y.address();
    g.a = a.address(), g.b = b.address(), g.scales = scales.address(), g.slots = (u64)slots_memory.data;
    g.down = down.address(), g.counters = (u64)counters_memory.data;
    g.rows = c.rows, g.inputs = c.inputs, g.outputs = c.outputs, g.rank = c.rank, g.slot_count = c.slots;
    g.columns = c.columns, g.stages = c.stages;
    const u32 threads = WARP * (c.columns / S::COLUMNS * S::PARTS + 1 + lora::FINISHERS);
    const u32 bytes = 1024 + lora::Plan(c.stages, c.columns, S::BOXES, S::PARTS, c.rank).end;
    for (int run = 0; run < 2; run++) { // twice: the first leaves the counters as it found them
        emulation::launch((c.outputs + c.columns - 1) / c.columns, threads, (bytes + 15) / 16 * 16, [&] { function(g); });
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
    // Rows, inputs and outputs that fill nothing evenly; fewer stages than turns and more.
    const Case wide[] = {
        {16, 768, 224, 8, 16, true, 112, 2}, {7, 1088, 200, 16, 3, false, 64, 1}, {16, 264, 96, 64, 5, true, 96, 3}, {3, 640, 112, 0, 0, true, 112, 2},
    };
    const Case middle[] = {
        {16, 1024, 128, 8, 16, false, 32, 2}, {9, 520, 136, 24, 4, true, 56, 4}, {1, 64, 40, 8, 1, true, 40, 1}, {12, 2560, 48, 32, 12, false, 24, 5},
    };
    const Case narrow[] = {
        {16, 2048, 24, 16, 16, true, 8, 3}, {5, 328, 40, 8, 2, false, 24, 2}, {8, 512, 8, 40, 8, true, 8, 1},
    };
    for (int schedule = 0; schedule < 3; schedule++) {
        emulation::schedule.late_copies = schedule != 1;
        emulation::schedule.warp_order = schedule;
        for (const Case &c : wide) {
            check<bf16, Wide>("bf16", few_rows_bf16_112, c, 4e-3);
            check<f16, Wide>("f16", few_rows_f16_112, c, 5e-4);
        }
        for (const Case &c : middle) {
            check<bf16, Middle>("bf16", few_rows_bf16_56, c, 4e-3);
            check<f16, Middle>("f16", few_rows_f16_56, c, 5e-4);
        }
        for (const Case &c : narrow) {
            check<bf16, Narrow>("bf16", few_rows_bf16_24, c, 4e-3);
            check<f16, Narrow>("f16", few_rows_f16_24, c, 5e-4);
        }
    }
    printf("%d checks, %d failures\n", checks, failures);
    return failures != 0;
}
