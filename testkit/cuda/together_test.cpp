// Adapters of several products of one input against their definition in f64: on a CPU (with CUDA_EMULATION) or on a GPU (by nvcc).
//
//   clang++ -std=c++17 -O2 -DCUDA_EMULATION -I testkit/cuda -I crates/kernels/src/lora/cuda testkit/cuda/together_test.cpp
//   nvcc -std=c++17 -O3 -arch=sm_90 -I crates/kernels/src/lora/cuda -x cu testkit/cuda/together_test.cpp
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#define TOGETHER_PUBLISH(NAME, ...) static const Launch NAME##_launch = {__VA_ARGS__};
#include "together.cu"
#include "host.h"

using namespace attention;
using together::Arguments;

#ifdef CUDA_EMULATION
template <class F> void start(F function, const Launch &launch, dim3 blocks, const Arguments &arguments) {
    emulation::launch(blocks, launch.threads, launch.shared_bytes, [&] { function(arguments); });
}
#else
template <class F> void start(F function, const Launch &launch, dim3 blocks, const Arguments &arguments) {
    CHECK(cudaFuncSetAttribute((const void *)function, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)launch.shared_bytes));
    function<<<blocks, launch.threads, launch.shared_bytes>>>(arguments);
    CHECK(cudaDeviceSynchronize());
}
#endif

using Values = std::vector<double>;

/// A matrix on the device, and what it held at first: random numbers, zeros behind the first `filled` of each row.
template <class T> struct Matrix {
    size_t rows, columns;
    Values values;
    Memory memory;

    Matrix(size_t rows, size_t columns, size_t filled, unsigned seed)
        : rows(rows), columns(columns), values(rows * columns), memory(rows * columns * sizeof(T)) {
        std::mt19937 generator(seed);
        std::uniform_real_distribution<float> uniform(-1, 1);
        std::vector<T> narrow(rows * columns);
        for (size_t i = 0; i < narrow.size(); i++) {
            narrow[i] = rounded<T>(i % columns < filled ? uniform(generator) : 0);
            values[i] = number(narrow[i]);
        }
        memory.write(narrow.data());
    }
    Matrix(size_t rows, size_t columns, unsigned seed) : Matrix(rows, columns, columns, seed) {}
    u64 address() const { return (u64)memory.data; }
    double at(size_t row, size_t column) const { return values[row * columns + column]; }
    Values found() const {
        std::vector<T> narrow(values.size());
        memory.read(narrow.data());
        Values found;
        for (T value : narrow) found.push_back(number(value));
        return found;
    }
};

struct Product { u32 outputs, rank; float scale; };
struct Case { u32 rows, inputs; std::vector<Product> products; bool has_dx; u32 parts; };

int failures = 0, checks = 0;

void compare(const char *what, const char *type, const Case &c, const Values &wanted, const Values &found, double tolerance) {
    double largest = 0, worst = 0;
    size_t place = 0;
    for (size_t i = 0; i < wanted.size(); i++) {
        largest = fmax(largest, fabs(wanted[i]));
        const double error = fabs(wanted[i] - found[i]);
        if (!(error <= worst)) worst = error, place = i; // a NaN is the worst
    }
    checks++;
    if (worst <= tolerance * largest) return;
    failures++;
    printf("%s of %s, %u rows, %u inputs, %zu adapters: error %.3g of %.3g at %zu\n", what, type, c.rows, c.inputs, c.products.size(),
           worst, largest, place);
}

/// What one adapter has and gets.
template <class T> struct Adapter {
    u32 width;
    Matrix<T> a, b, y, h, g;
    Matrix<float> da, db;

    Adapter(const Case &c, const Product &p, unsigned seed)
        : width((p.rank + 7) / 8 * 8), a(p.rank, c.inputs, seed), b(p.outputs, p.rank, seed + 1), y(c.rows, p.outputs, seed + 2),
          h(c.rows, width, p.rank, seed + 3), g(c.rows, width, p.rank, seed + 4), da(c.parts * p.rank, c.inputs, seed + 5),
          db(c.parts * p.rank, p.outputs, seed + 6) {}
};

template <class T> struct Fixture {
    const Case &c;
    Matrix<T> x, dx;
    std::vector<std::unique_ptr<Adapter<T>>> adapters;
    Arguments arguments{};

    explicit Fixture(const Case &c) : c(c), x(c.rows, c.inputs, 1), dx(c.rows, c.inputs, 2) {
        arguments.x = x.address(), arguments.dx = c.has_dx ? dx.address() : 0;
        arguments.rows = c.rows, arguments.inputs = c.inputs, arguments.count = (u32)c.products.size();
        const u32 tiles = (c.rows + 15) / 16;
        arguments.part_rows = (tiles + c.parts - 1) / c.parts * 16;
        for (size_t i = 0; i < c.products.size(); i++) {
            adapters.push_back(std::make_unique<Adapter<T>>(c, c.products[i], 10 * (unsigned)i + 10));
            const Adapter<T> &adapter = *adapters[i];
            together::Member &member = arguments.members[i];
            member.a = adapter.a.address(), member.b = adapter.b.address(), member.y = adapter.y.address();
            member.h = adapter.h.address(), member.g = adapter.g.address();
            member.da = adapter.da.address(), member.db = adapter.db.address();
            member.rank = c.products[i].rank, member.outputs = c.products[i].outputs, member.scale = c.products[i].scale;
        }
    }
    u32 row_blocks() const { return (c.rows + together::BLOCK_ROWS - 1) / together::BLOCK_ROWS; }
    u32 strips(bool with_inputs) const {
        u32 strips = with_inputs ? (c.inputs + 63) / 64 : 0;
        for (const Product &p : c.products) strips += (p.outputs + 63) / 64;
        return strips;
    }
};

/// left [M, R] or its transpose, times right [R, N] or its transpose.
template <class A, class B> Values product(const Matrix<A> &left, bool turned_left, const Matrix<B> &right, bool turned_right) {
    const size_t rows = turned_left ? left.columns : left.rows, inner = turned_left ? left.rows : left.columns;
    const size_t columns = turned_right ? right.rows : right.columns;
    Values result(rows * columns);
    for (size_t m = 0; m < rows; m++)
        for (size_t k = 0; k < inner; k++) {
            const double factor = turned_left ? left.at(k, m) : left.at(m, k);
            for (size_t n = 0; n < columns; n++) result[m * columns + n] += factor * (turned_right ? right.at(n, k) : right.at(k, n));
        }
    return result;
}

/// `values [rows, count]` with zeros behind each row, up to `width`.
Values padded(const Values &values, u32 count, u32 width) {
    Values result(values.size() / count * width);
    for (size_t i = 0; i < values.size(); i++) result[i / count * width + i % count] = values[i];
    return result;
}

template <class T, class F> void check_pull(const char *type, F function, const Launch &launch, const Case &c, double unit) {
    Fixture<T> fixture(c);
    start(function, launch, fixture.row_blocks(), fixture.arguments);
    for (size_t i = 0; i < c.products.size(); i++) {
        Adapter<T> &adapter = *fixture.adapters[i];
        compare("h", type, c, padded(product(fixture.x, false, adapter.a, true), c.products[i].rank, adapter.width), adapter.h.found(), unit);
    }
}

template <class T, class F> void check_up(const char *type, F function, const Launch &launch, const Case &c, double unit) {
    Fixture<T> fixture(c);
    const u32 warps = fixture.strips(false) * ((c.rows + together::UP_ROWS - 1) / together::UP_ROWS);
    start(function, launch, (warps + together::WARPS - 1) / together::WARPS, fixture.arguments);
    for (size_t i = 0; i < c.products.size(); i++) {
        Adapter<T> &adapter = *fixture.adapters[i];
        Values wanted = adapter.y.values;
        for (u32 m = 0; m < c.rows; m++)
            for (u32 n = 0; n < c.products[i].outputs; n++)
                for (u32 r = 0; r < c.products[i].rank; r++)
                    wanted[m * c.products[i].outputs + n] += c.products[i].scale * adapter.h.at(m, r) * adapter.b.at(n, r);
        compare("y", type, c, wanted, adapter.y.found(), unit);
    }
}

template <class T, class F> void check_through(const char *type, F function, const Launch &launch, const Case &c, double unit) {
    Fixture<T> fixture(c);
    start(function, launch, fixture.row_blocks(), fixture.arguments);
    Values wanted = fixture.dx.values;
    for (size_t i = 0; i < c.products.size(); i++) {
        Adapter<T> &adapter = *fixture.adapters[i];
        const u32 rank = c.products[i].rank;
        const Values g = product(adapter.y, false, adapter.b, false);
        compare("g", type, c, padded(g, rank, adapter.width), adapter.g.found(), unit);
        for (u32 m = 0; c.has_dx && m < c.rows; m++)
            for (u32 r = 0; r < rank; r++)
                for (u32 k = 0; k < c.inputs; k++) wanted[m * c.inputs + k] += c.products[i].scale * g[m * rank + r] * adapter.a.at(r, k);
    }
    compare("dx", type, c, wanted, fixture.dx.found(), 2 * unit);
}

/// The parts are `[parts, rank, width]`; their sum is compared.
template <class T> void compare_sum(const char *what, const char *type, const Case &c, const Values &left, const Matrix<float> &parts, u32 rank) {
    const Values found = parts.found();
    const size_t count = rank * parts.columns;
    Values sum(count);
    for (size_t i = 0; i < found.size(); i++) sum[i % count] += found[i];
    compare(what, type, c, Values(left.begin(), left.begin() + (long)count), sum, 1e-5);
}

template <class T, class F> void check_outers(const char *type, F function, const Launch &launch, const Case &c) {
    Fixture<T> fixture(c);
    start(function, launch, dim3((fixture.strips(true) + together::STRIPS - 1) / together::STRIPS, c.parts), fixture.arguments);
    for (size_t i = 0; i < c.products.size(); i++) {
        Adapter<T> &adapter = *fixture.adapters[i];
        compare_sum<T>("dA", type, c, product(adapter.g, true, fixture.x, false), adapter.da, c.products[i].rank);
        compare_sum<T>("dB", type, c, product(adapter.h, true, adapter.y, false), adapter.db, c.products[i].rank);
    }
}

#define CHECK_PASS(PASS, TYPE, BLOCKS, ...) \
    check_##PASS<TYPE>(#TYPE, together_##PASS##_##TYPE##_##BLOCKS, together_##PASS##_##TYPE##_##BLOCKS##_launch, __VA_ARGS__)
#define CHECK_ALL(TYPE, UNIT) \
    if (all <= 2) CHECK_PASS(pull, TYPE, 2, c, UNIT), CHECK_PASS(outers, TYPE, 2, c); \
    else if (all <= 4) CHECK_PASS(pull, TYPE, 4, c, UNIT), CHECK_PASS(outers, TYPE, 4, c); \
    else CHECK_PASS(pull, TYPE, 6, c, UNIT), CHECK_PASS(outers, TYPE, 6, c); \
    if (most == 1) CHECK_PASS(through, TYPE, 1, c, UNIT); \
    else CHECK_PASS(through, TYPE, 2, c, UNIT); \
    check_up<TYPE>(#TYPE, together_up_##TYPE, together_up_##TYPE##_launch, c, UNIT)

int main() {
    const Case cases[] = {
        {128, 192, {{128, 8, 0.5f}, {64, 8, 2.f}}, true, 1},
        {77, 896, {{896, 8, 0.5f}, {128, 8, 1.5f}}, true, 2},
        {145, 136, {{72, 16, 0.75f}}, true, 3},
        {33, 1304, {{40, 4, 0.5f}, {200, 8, 1.f}, {24, 3, 2.f}}, true, 1},
        {50, 328, {{48, 16, 0.5f}, {136, 5, 1.f}, {64, 16, 0.25f}}, true, 2},
        {300, 64, {{8, 8, 1.f}}, false, 2},
        {19, 8, {{1096, 12, 1.f}, {2128, 1, 3.f}}, true, 1},
        {400, 40, {{24, 8, 1.f}, {16, 16, 0.5f}}, true, 2},
    };
#ifdef CUDA_EMULATION
    for (int schedule = 0; schedule < 3; schedule++) {
        emulation::schedule.late_copies = schedule != 1;
        emulation::schedule.warp_order = schedule;
#endif
        for (const Case &c : cases) {
            u32 all = 0, most = 0;
            for (const Product &p : c.products) all += (p.rank + 7) / 8, most = max(most, (p.rank + 7) / 8);
            CHECK_ALL(bf16, 4e-3);
            CHECK_ALL(f16, 5e-4);
        }
#ifdef CUDA_EMULATION
    }
#endif
    printf("%d checks, %d failures\n", checks, failures);
    return failures != 0;
}
