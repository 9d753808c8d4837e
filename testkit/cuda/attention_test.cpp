// The attention kernels against their definition in f64: on a CPU (with CUDA_EMULATION) or on a GPU (by nvcc).
//
//   clang++ -std=c++17 -O2 -DCUDA_EMULATION -I testkit/cuda -I crates/kernels/src/attention/cuda ...
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

struct Kernel { const void *function; unsigned threads, shared_bytes, rows; };
std::map<std::string, Kernel> &kernels() { static std::map<std::string, Kernel> all; return all; }
struct Published {
    Published(const char *name, const void *function, unsigned threads, unsigned shared_bytes, unsigned rows) {
        kernels()[name] = {function, threads, shared_bytes, rows};
    }
};
#define ATTENTION_PUBLISH(NAME, ...) static Published NAME##_published(#NAME, (const void *)NAME, __VA_ARGS__);
#include "attention.cu"
#include "host.h"

// -------------------------------------------------------------------------------------------- memory and launches

#ifdef CUDA_EMULATION
template <class A> void launch(const std::string &name, dim3 grid, const A &arguments) {
    const Kernel &kernel = kernels().at(name);
    auto function = (void (*)(const A))kernel.function;
    emulation::launch(grid, kernel.threads, kernel.shared_bytes, [&] { function(arguments); });
}
#else
template <class A> void launch(const std::string &name, dim3 grid, const A &arguments) {
    const Kernel &kernel = kernels().at(name);
    void *pointers[] = {(void *)&arguments};
    CHECK(cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)kernel.shared_bytes));
    CHECK(cudaLaunchKernel(kernel.function, grid, dim3(kernel.threads), pointers, kernel.shared_bytes, 0));
    CHECK(cudaDeviceSynchronize());
}
#endif

template <class T> std::unique_ptr<Memory> upload(const std::vector<T> &values) {
    auto memory = std::make_unique<Memory>(values.size() * sizeof(T));
    memory->write(values.data());
    return memory;
}
template <class T> std::vector<T> download(Memory &memory) {
    std::vector<T> values(memory.bytes / sizeof(T));
    memory.read(values.data());
    return values;
}

// ------------------------------------------------------------------------------------------------------ one case

struct Case {
    u32 heads = 2, groups = 1, head_dim = 64;
    std::vector<u32> counts{1};
    std::vector<u32> lengths{}; // cached positions; empty: the rows' own keys
    bool causal = true;
    u32 window = 0;
    float soft_cap = 0;
    u32 splits = 1, pack = 1, shift = 5;
    bool decode = false, backward = false;
};

std::string describe(const char *type, const Case &c) {
    std::string text = std::string(type) + " H=" + std::to_string(c.heads) + " G=" + std::to_string(c.groups) + " D=" +
        std::to_string(c.head_dim) + " counts";
    for (u32 n : c.counts) text += " " + std::to_string(n);
    if (!c.lengths.empty()) text += c.decode ? " decode lengths" : " cached lengths";
    for (u32 n : c.lengths) text += " " + std::to_string(n);
    if (!c.causal) text += " all";
    if (c.window) text += " window " + std::to_string(c.window);
    if (c.soft_cap) text += " cap";
    if (c.splits > 1) text += " splits " + std::to_string(c.splits);
    if (c.backward) text += " backward";
    return text;
}

template <class T> struct Name;
template <> struct Name<bf16> { static constexpr const char *text = "bf16"; static constexpr double forward = 1e-2, backward = 1.5e-2; };
template <> struct Name<f16> { static constexpr const char *text = "f16"; static constexpr double forward = 2e-3, backward = 3e-3; };
template <> struct Name<float> { static constexpr const char *text = "f32"; static constexpr double forward = 1e-5, backward = 2e-5; };

int failures = 0, checks = 0;
double worst[2][3];

/// `[rows, heads, D]` inside wider rows whose other elements are not numbers and must stay untouched.
template <class T> struct Matrix {
    u32 rows, columns, stride, offset;
    std::vector<double> wide;
    std::unique_ptr<Memory> memory;

    Matrix(u32 rows, u32 columns, u32 gap) : rows(rows), columns(columns), stride(columns + 2 * gap), offset(gap), wide((size_t)rows * columns) {}
    void random(std::mt19937 &generator, double spread) {
        std::normal_distribution<double> normal(0, spread);
        for (double &value : wide) value = number(rounded<T>((float)normal(generator)));
        put(true);
    }
    void put(bool filled) {
        std::vector<T> values((size_t)rows * stride, rounded<T>(NAN));
        for (u32 r = 0; r < rows && filled; r++)
            for (u32 c = 0; c < columns; c++) values[(size_t)r * stride + offset + c] = rounded<T>((float)wide[(size_t)r * columns + c]);
        memory = upload(values);
    }
    Rows view() { return {memory->data + offset * sizeof(T), stride}; }
    std::vector<double> result() {
        auto values = download<T>(*memory);
        std::vector<double> result;
        for (u32 r = 0; r < rows; r++)
            for (u32 c = 0; c < stride; c++) {
                float value = number(values[(size_t)r * stride + c]);
                if (c >= offset && c < offset + columns) result.push_back(value);
                else if (!std::isnan(value)) { printf("FAILED: wrote outside of its columns\n"); failures++; }
            }
        return result;
    }
};

void compare(const std::string &what, const std::vector<double> &found, const std::vector<double> &expected, double tolerance, int pass, int type, double cancelled = 0) {
    double largest = std::max(cancelled, 1e-6), error = 0;
    for (double value : expected) if (std::isfinite(value)) largest = std::max(largest, std::fabs(value));
    size_t at = 0;
    for (size_t i = 0; i < expected.size(); i++) {
        double difference = std::fabs(found[i] - expected[i]);
        if (!(difference <= error)) { error = std::isnan(difference) ? INFINITY : difference; at = i; }
    }
    checks++;
    worst[pass][type] = std::max(worst[pass][type], error / largest / tolerance);
    if (error <= tolerance * largest) return;
    failures++;
    printf("FAILED %s: at %zu found %g expected %g (largest %g)\n", what.c_str(), at, found[at], expected[at], largest);
}

struct Reference {
    std::vector<double> out, lse, d_queries, d_keys, d_values;
    /// The largest terms that the gradients of queries and keys are differences of.
    double query_terms = 0, key_terms = 0;
};

template <class T> void reference(const Case &c, double scale, const Matrix<T> &q, const std::vector<Matrix<T>> &k, const std::vector<Matrix<T>> &v, const Matrix<T> *d_out, u32 total, Reference &r) {
    const u32 D = c.head_dim, share = c.heads / c.groups;
    r.out.assign(q.wide.size(), 0);
    r.lse.assign((size_t)c.heads * total, 0);
    if (d_out) {
        r.d_queries.assign(q.wide.size(), 0);
        r.d_keys.assign((size_t)total * c.groups * D, 0);
        r.d_values = r.d_keys;
    }
    u32 first = 0;
    for (size_t s = 0; s < c.counts.size(); s++) {
        const u32 count = c.counts[s], length = k[s].rows;
        for (u32 i = 0; i < count; i++)
            for (u32 h = 0; h < c.heads; h++) {
                const u32 g = h / share, position = length - count + i;
                const size_t row = ((size_t)(first + i) * c.heads + h) * D;
                auto key = [&](u32 j) { return ((size_t)j * c.groups + g) * D; };
                std::vector<double> weight(length, 0), bent(length, 0);
                double highest = -INFINITY, sum = 0;
                for (u32 j = 0; j < length; j++) {
                    double score = 0;
                    for (u32 d = 0; d < D; d++) score += q.wide[row + d] * k[s].wide[key(j) + d];
                    score *= scale;
                    bent[j] = c.soft_cap ? c.soft_cap * std::tanh(score / c.soft_cap) : score;
                    bool seen = (!c.causal || j <= position) && (!c.window || j + c.window > position);
                    weight[j] = seen ? bent[j] : -INFINITY;
                    highest = std::max(highest, weight[j]);
                }
                for (double &w : weight) sum += w = std::exp(w - highest);
                for (double &w : weight) w /= sum;
                r.lse[(size_t)h * total + first + i] = highest + std::log(sum);
                for (u32 j = 0; j < length; j++)
                    for (u32 d = 0; d < D; d++) r.out[row + d] += weight[j] * v[s].wide[key(j) + d];
                if (!d_out) continue;
                double delta = 0;
                for (u32 d = 0; d < D; d++) delta += r.out[row + d] * d_out->wide[row + d];
                for (u32 j = 0; j < length; j++) {
                    if (weight[j] == 0) continue;
                    const size_t own = key(first + j);
                    double slope = 0;
                    for (u32 d = 0; d < D; d++) slope += d_out->wide[row + d] * v[s].wide[key(j) + d];
                    double bend = c.soft_cap ? 1 - std::pow(bent[j] / c.soft_cap, 2) : 1;
                    double d_score = weight[j] * (slope - delta) * bend * scale;
                    const double terms = weight[j] * (std::fabs(slope) + std::fabs(delta)) * bend * scale;
                    for (u32 d = 0; d < D; d++) {
                        r.query_terms = std::max(r.query_terms, terms * std::fabs(k[s].wide[key(j) + d]));
                        r.key_terms = std::max(r.key_terms, terms * std::fabs(q.wide[row + d]));
                        r.d_values[own + d] += weight[j] * d_out->wide[row + d];
                        r.d_queries[row + d] += d_score * k[s].wide[key(j) + d];
                        r.d_keys[own + d] += d_score * q.wide[row + d];
                    }
                }
            }
        first += count;
    }
}

std::string columns(const char *type, u32 head_dim) {
    for (u32 size : {64u, 96u, 128u, 256u})
        if (head_dim <= size && (size != 96 || std::string(type) != "f32")) return "_" + std::string(type) + "_" + std::to_string(size);
    abort();
}

/// The tile list: longest first.
std::unique_ptr<Memory> tile_list(const Case &c, u32 rows, bool keys, u32 &count) {
    std::vector<std::array<u32, 3>> tiles;
    for (u32 s = 0; s < c.counts.size(); s++)
        for (u32 block = 0; block * rows < c.counts[s] * (keys ? 1 : c.pack); block++)
            tiles.push_back({keys ? c.counts[s] - block * rows : (block + 1) * rows, s, block});
    std::stable_sort(tiles.begin(), tiles.end(), [](auto &a, auto &b) { return a[0] > b[0]; });
    std::vector<u32> flat;
    for (auto &tile : tiles) { flat.push_back(tile[1]); flat.push_back(tile[2]); }
    count = tiles.size();
    return upload(flat);
}

template <class T> void run(const Case &c, u32 seed) {
    const char *type = Name<T>::text;
    const int column = std::is_same_v<T, bf16> ? 0 : std::is_same_v<T, f16> ? 1 : 2;
    const std::string what = describe(type, c);
    std::mt19937 generator(seed);
    u32 total = 0;
    std::vector<u32> starts{0};
    for (u32 n : c.counts) starts.push_back(total += n);
    const u32 D = c.head_dim;
    const float scale = 1.5f / std::sqrt((float)D);
    Matrix<T> q(total, c.heads * D, 16), all_k(total, c.groups * D, 24), all_v(total, c.groups * D, 8), out(total, c.heads * D, 8), d_out(total, c.heads * D, 0);
    q.random(generator, 1.5);
    out.put(false);
    std::vector<Matrix<T>> k, v;
    std::vector<std::unique_ptr<Memory>> chunks;
    std::vector<u64> key_chunks, value_chunks;
    std::vector<u32> chunk_starts;
    if (c.lengths.empty()) {
        all_k.random(generator, 1.5);
        all_v.random(generator, 1);
        for (size_t s = 0; s < c.counts.size(); s++)
            for (auto *pair : {&all_k, &all_v}) {
                Matrix<T> part(c.counts[s], c.groups * D, 0);
                std::copy_n(pair->wide.begin() + (size_t)starts[s] * c.groups * D, part.wide.size(), part.wide.begin());
                (pair == &all_k ? k : v).push_back(std::move(part));
            }
    } else {
        const u32 chunk = 1u << c.shift;
        for (size_t s = 0; s < c.counts.size(); s++) {
            chunk_starts.push_back(key_chunks.size());
            for (auto *list : {&k, &v}) {
                Matrix<T> part(c.lengths[s], c.groups * D, 0);
                part.random(generator, 1.2);
                for (u32 from = 0; from < c.lengths[s]; from += chunk) {
                    std::vector<T> values((size_t)chunk * c.groups * D, rounded<T>(NAN));
                    for (size_t i = 0; i < values.size() && (size_t)from * c.groups * D + i < part.wide.size(); i++)
                        values[i] = rounded<T>((float)part.wide[(size_t)from * c.groups * D + i]);
                    chunks.push_back(upload(values));
                    (list == &k ? key_chunks : value_chunks).push_back((u64)chunks.back()->data);
                }
                list->push_back(std::move(part));
            }
        }
    }

    auto d_starts = upload(starts), d_lengths = upload(c.lengths), d_chunk_starts = upload(chunk_starts), d_key_chunks = upload(key_chunks), d_value_chunks = upload(value_chunks);
    Memory lse((size_t)c.heads * total * 4), partial((size_t)c.splits * total * c.heads * D * 4), partial_lse((size_t)c.splits * total * c.heads * 4);
    // Where there is a shape for few tiles, every other case takes it.
    auto shape = [&](const std::string &pass) {
        const std::string name = pass + "_short" + columns(type, D);
        return seed % 2 && kernels().count(name) ? name : pass + columns(type, D);
    };
    const std::string pass = c.lengths.empty() ? "attention_forward" : c.decode ? "attention_decode" : "attention_cached";
    const std::string name = shape(pass);
    u32 tiles;
    auto d_tiles = tile_list(c, kernels().at(name).rows, false, tiles);
    Common common{(u32 *)d_starts->data, (u32 *)d_tiles->data, total, c.heads, c.groups, D, c.causal, c.window, scale, c.soft_cap};
    ForwardArguments f{common, q.view(), {}, {}, (u64 *)d_key_chunks->data, (u64 *)d_value_chunks->data, (u32 *)d_chunk_starts->data,
                       (u32 *)d_lengths->data, c.shift, c.pack, c.splits, out.view(), (float *)lse.data, (float *)partial.data, (float *)partial_lse.data};
    if (c.lengths.empty()) {
        f.keys = all_k.view();
        f.values = all_v.view();
    }
    launch(name, dim3(c.heads / c.pack, tiles, c.splits), f);
    auto rows_of_lanes = [&](u32 pieces) {
        u32 lanes = 1;
        while (lanes < pieces) lanes *= 2;
        return dim3((total * c.heads + 256 / lanes - 1) / (256 / lanes));
    };
    if (c.splits > 1) launch(std::string("attention_merge_") + type, rows_of_lanes(D / 2), f);

    Reference expected;
    if (c.backward) d_out.random(generator, 1);
    reference(c, scale, q, k, v, c.backward ? &d_out : nullptr, total, expected);
    compare(what + " out", out.result(), expected.out, Name<T>::forward, 0, column);
    auto found_lse = download<float>(lse);
    compare(what + " lse", std::vector<double>(found_lse.begin(), found_lse.end()), expected.lse, column == 2 ? 1e-5 : 2e-5, 0, column);
    if (!c.backward) return;

    Matrix<T> d_q(total, c.heads * D, 8), d_k(total, c.groups * D, 16), d_v(total, c.groups * D, 8);
    for (auto *m : {&d_q, &d_k, &d_v}) m->put(false);
    Memory delta((size_t)c.heads * total * 4), sums((size_t)c.splits * 2 * total * c.groups * D * 4);
    BackwardArguments b{common, q.view(), all_k.view(), all_v.view(), out.view(), d_out.view(), d_q.view(), d_k.view(), d_v.view(),
                        (float *)lse.data, (float *)delta.data, c.splits, (float *)sums.data};
    launch(std::string("attention_delta_") + type, rows_of_lanes(D / 8), b);
    const std::string queries = shape("attention_backward_queries"), keys = "attention_backward_keys" + columns(type, D);
    auto query_tiles = tile_list(c, kernels().at(queries).rows, false, tiles);
    b.common.tiles = (u32 *)query_tiles->data;
    launch(queries, dim3(c.heads, tiles), b);
    auto key_tiles = tile_list(c, kernels().at(keys).rows, true, tiles);
    b.common.tiles = (u32 *)key_tiles->data;
    launch(keys, dim3(c.groups * c.splits, tiles, column != 2 && D > 128 ? 2 : 1), b);
    if (c.splits > 1) launch(std::string("attention_reduce_") + type, dim3((total * c.groups * D / 2 + 255) / 256), b);
    compare(what + " d_queries", d_q.result(), expected.d_queries, Name<T>::backward, 1, column, expected.query_terms);
    compare(what + " d_keys", d_k.result(), expected.d_keys, Name<T>::backward, 1, column, expected.key_terms);
    compare(what + " d_values", d_v.result(), expected.d_values, Name<T>::backward, 1, column);
}

// --------------------------------------------------------------------------------------------------------- cases

enum Extent { TINY, SMALL, ALL };

template <class T> void run_all(Extent extent) {
    const bool small = extent != ALL;
    u32 seed = 1;
    auto check = [&](Case c) {
#ifdef CUDA_EMULATION
        emulation::schedule = {seed % 2 == 0, (int)(seed / 2 % 4)};
#endif
        run<T>(c, seed++);
    };
    if (extent == TINY) {
        Case c;
        c.heads = 4;
        c.groups = 2;
        c.counts = {65, 3, 200};
        c.window = 150;
        c.splits = 2;
        c.backward = true;
        check(c);
        c.head_dim = 80;
        check(c);
        c.backward = false;
        c.lengths = {65, 70, 300};
        c.pack = 2;
        check(c);
        c.counts = {1, 2, 1};
        c.decode = true;
        return check(c);
    }
    // Every length.
    for (u32 length = 1; length <= 300; length += small ? (length < 12 ? 3 : 37) : 1) {
        Case c;
        c.counts = {length};
        c.backward = true;
        check(c);
    }
    // Every head size.
    for (u32 D = 8; D <= 256; D += 8) {
        if (small && D % 32 && D != 80 && D != 112 && D != 8) continue;
        Case c;
        c.head_dim = D;
        c.counts = {70, 1, 133};
        c.backward = true;
        check(c);
        c.backward = false;
        c.pack = 2;
        c.lengths = {70, 45, 210};
        check(c);
        c.decode = true;
        c.counts = {1, 1, 2};
        check(c);
    }
    if (!small) {
        Case c;
        c.counts = {3, 1500};
        c.backward = true;
        check(c);
        c.head_dim = 128;
        c.counts = {1100};
        check(c);
    }
    // Heads, masks, caps, splits, packed segments.
    const std::vector<std::vector<u32>> packs = {{130}, {1, 2, 3}, {64, 65}, {17, 200, 5, 33}};
    for (auto [heads, groups] : std::vector<std::pair<u32, u32>>{{1, 1}, {4, 2}, {7, 1}, {14, 2}})
        for (auto &counts : packs)
            for (int kind = 0; kind < 6; kind++) {
                if (small && (heads + counts.size() + kind) % 4) continue;
                Case c;
                c.heads = heads;
                c.groups = groups;
                c.counts = counts;
                c.causal = kind != 1;
                c.window = kind == 2 ? 1 : kind == 3 ? 40 : kind == 5 ? 100 : 0;
                c.soft_cap = kind >= 4 ? 3.f : 0.f;
                c.splits = 1 + kind % 3;
                c.backward = true;
                check(c);
                c.backward = false;
                c.pack = heads / groups;
                for (u32 n : counts) c.lengths.push_back(n + (kind * 50 + n * 7) % 180);
                c.shift = 4 + kind % 4;
                c.splits = 1 + kind % 4;
                check(c);
                c.decode = true;
                for (u32 &n : c.counts) n = 1 + n % 3;
                check(c);
            }
}

// attention_test [tiny|small|all] [bf16|f16|f32]
int main(int count, char **arguments) {
    const std::string word = count > 1 ? arguments[1] : "all";
    const Extent extent = word == "tiny" ? TINY : word == "small" ? SMALL : ALL;
    const std::string type = count > 2 ? arguments[2] : "";
    if (type.empty() || type == "bf16") run_all<bf16>(extent);
    if (type.empty() || type == "f16") run_all<f16>(extent);
    if (type.empty() || type == "f32") run_all<float>(extent);
    printf("%d checks, %d failed; largest error, as part of what is allowed: forward %.2f bf16 %.2f f16 %.2f f32; backward %.2f %.2f %.2f\n",
           checks, failures, worst[0][0], worst[0][1], worst[0][2], worst[1][0], worst[1][1], worst[1][2]);
    return failures != 0;
}
