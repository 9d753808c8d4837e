// Attention without the score matrix: blocks of queries walk over tiles of keys and keep a running softmax.
//
// M: rows of a block, N: keys of a tile. A block's warps share out its rows; where there are few rows (decoding),
// they share out the keys of each tile instead and join their results at the end.
// https://arxiv.org/abs/2307.08691 describes the order of work.
#pragma once

#include "arguments.cuh"
#include "tile.cuh"

namespace attention {

/// How much a row's maximum may grow before its sums are rescaled, as a power of two: weights stay below 2⁸.
constexpr float RESCALE_FROM = 8.f;

template <typename T_, int D_, int M_, int N_, int ROW_WARPS_, int KEY_WARPS_, bool CHUNKED_, bool QUERIES_IN_REGISTERS_, int STAGES_ = 2>
struct ForwardShape {
    using T = T_;
    static constexpr int D = D_, M = M_, N = N_, ROW_WARPS = ROW_WARPS_, KEY_WARPS = KEY_WARPS_, STAGES = STAGES_;
    static constexpr bool CHUNKED = CHUNKED_, QUERIES_IN_REGISTERS = QUERIES_IN_REGISTERS_;
    static constexpr int THREADS = 32 * ROW_WARPS * KEY_WARPS;
    static constexpr int ROW_FRAGMENTS = M / ROW_WARPS / 16;
    static constexpr int KEY_FRAGMENTS = N / KEY_WARPS / 8;
    static constexpr int TILE_BYTES = N * Tile<D>::ROW_BYTES;
    static constexpr int QUERY_BYTES = M * Tile<D>::ROW_BYTES;
    static constexpr int JOIN_BYTES = KEY_WARPS > 1 ? KEY_WARPS * M * (D + 2) * 4 : 0;
    static constexpr int STAGED_BYTES = QUERY_BYTES + 2 * STAGES * TILE_BYTES;
    static constexpr int SHARED_BYTES = STAGED_BYTES > JOIN_BYTES ? STAGED_BYTES : JOIN_BYTES;
    static_assert(KEY_WARPS == 1 || ROW_FRAGMENTS == 1, "few rows when warps share out keys");
    static_assert(KEY_FRAGMENTS % 2 == 0, "keys come in pairs of fragments");
};

/// The running softmax of a warp's rows.
template <typename S> struct Accumulator {
    float sums[S::ROW_FRAGMENTS][S::D / 8][4];
    /// Per row and lane: the maximum that the sums are relative to, and the lane's part of the sum of weights.
    float maximum[S::ROW_FRAGMENTS][2], total[S::ROW_FRAGMENTS][2];

    __device__ __forceinline__ void reset() {
        clear(sums);
#pragma unroll
        for (int m = 0; m < S::ROW_FRAGMENTS; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                maximum[m][half] = -INFINITE;
                total[m][half] = 0.f;
            }
        }
    }

    /// Follows the maxima of new scores, if any grew enough to matter.
    __device__ __forceinline__ void follow(const float (&scores)[S::ROW_FRAGMENTS][S::KEY_FRAGMENTS][4], float multiplier) {
        float found[S::ROW_FRAGMENTS][2];
        bool grown = false;
#pragma unroll
        for (int m = 0; m < S::ROW_FRAGMENTS; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float value = -INFINITE;
#pragma unroll
                for (int n = 0; n < S::KEY_FRAGMENTS; n++) {
                    value = fmaxf(value, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
                }
                found[m][half] = row_maximum(value);
                grown |= (found[m][half] - maximum[m][half]) * multiplier > RESCALE_FROM;
            }
        }
        if (!__any_sync(~0u, grown)) return;
#pragma unroll
        for (int m = 0; m < S::ROW_FRAGMENTS; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float newest = fmaxf(maximum[m][half], found[m][half]);
                const bool same = newest == maximum[m][half];
                const float factor = same ? 1.f : power_of_two((maximum[m][half] - newest) * multiplier);
                maximum[m][half] = newest;
                total[m][half] *= factor;
#pragma unroll
                for (int n = 0; n < S::D / 8; n++) {
                    sums[m][n][2 * half] *= factor;
                    sums[m][n][2 * half + 1] *= factor;
                }
            }
        }
    }

    /// What is subtracted from `multiplier · score`; 0 for a row that has seen no key.
    __device__ __forceinline__ float shift(int m, int half, float multiplier) const {
        return maximum[m][half] == -INFINITE ? 0.f : maximum[m][half] * multiplier;
    }
};

/// One warp's share of a block.
template <typename S> struct ForwardWarp {
    u32 row, key;            // first row in the block, first key in a tile
    u32 lowest, highest;     // positions of its rows
    u32 positions[S::ROW_FRAGMENTS][2];
};

template <typename S>
__device__ __forceinline__ void forward_tile(
    Accumulator<S> &accumulator, const LeftMatrix<S::D, S::ROW_FRAGMENTS, S::QUERIES_IN_REGISTERS> &queries,
    const ForwardWarp<S> &warp, const Visibility &visibility, const Scores &score, u32 first_key, u32 keys, u32 values
) {
    using T = typename S::T;
    const u32 lane = threadIdx.x % WARP;
    float scores[S::ROW_FRAGMENTS][S::KEY_FRAGMENTS][4];
    multiply_rows<T>(scores, queries, keys, warp.key);

    const u32 own_first = first_key + warp.key;
    if (!visibility.sees_all(warp.lowest, warp.highest, own_first, 8 * S::KEY_FRAGMENTS)) {
#pragma unroll
        for (int m = 0; m < S::ROW_FRAGMENTS; m++) {
#pragma unroll
            for (int n = 0; n < S::KEY_FRAGMENTS; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const u32 key = own_first + 8 * n + lane % 4 * 2 + i % 2;
                    if (!visibility.sees(warp.positions[m][i / 2], key)) scores[m][n][i] = -INFINITE;
                }
            }
        }
    }
    if (score.capped()) {
#pragma unroll
        for (int m = 0; m < S::ROW_FRAGMENTS; m++) {
#pragma unroll
            for (int n = 0; n < S::KEY_FRAGMENTS; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) scores[m][n][i] = score.bend_seen(scores[m][n][i]);
            }
        }
    }
    accumulator.follow(scores, score.multiplier);

    Narrowed<T, S::ROW_FRAGMENTS, S::KEY_FRAGMENTS> weights;
#pragma unroll
    for (int m = 0; m < S::ROW_FRAGMENTS; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float shift = accumulator.shift(m, half, score.multiplier);
#pragma unroll
            for (int n = 0; n < S::KEY_FRAGMENTS; n++) {
                const float low = power_of_two(scores[m][n][2 * half] * score.multiplier - shift);
                const float high = power_of_two(scores[m][n][2 * half + 1] * score.multiplier - shift);
                accumulator.total[m][half] += low + high;
                weights.set(m, n, half, low, high);
            }
        }
    }
    multiply_turned<T, S::D>(accumulator.sums, weights, values, warp.key, 0);
}

/// Where the rows of a block go. `PACKED`: several query heads share it.
template <bool PACKED> struct ForwardBlock {
    Segment segment;
    u32 first_head, first_row, row_end, pack, split;

    __device__ __forceinline__ u32 token(u32 row) const { return PACKED ? row / pack : row; }
    __device__ __forceinline__ u32 head(u32 row) const { return PACKED ? first_head + row % pack : first_head; }
};

template <typename Block>
__device__ __forceinline__ void store_lse(const ForwardArguments &a, const Block &block, u32 row, float lse) {
    const u64 at = static_cast<u64>(block.head(row)) * a.common.rows + block.segment.first + block.token(row);
    if (a.splits > 1) {
        a.partial_lse[static_cast<u64>(block.split) * a.common.heads * a.common.rows + at] = lse;
    } else if (a.lse != nullptr) {
        a.lse[at] = lse;
    }
}

/// Row `row` of `partial`.
template <typename Block>
__device__ __forceinline__ float *partial_row(const ForwardArguments &a, const Block &block, u32 row) {
    const u64 token = static_cast<u64>(block.split) * a.common.rows + block.segment.first + block.token(row);
    return a.partial + (token * a.common.heads + block.head(row)) * a.common.head_dim;
}

/// Divides by the totals and writes the block's rows: each warp its own.
template <typename S>
__device__ __forceinline__ void finish_rows(
    const ForwardArguments &a, const ForwardBlock<S::CHUNKED> &block, const ForwardWarp<S> &warp, Accumulator<S> &accumulator, float multiplier
) {
    using T = typename S::T;
    const u32 lane = threadIdx.x % WARP, head_dim = a.common.head_dim;
#pragma unroll
    for (int m = 0; m < S::ROW_FRAGMENTS; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float total = row_sum(accumulator.total[m][half]);
            const float inverse = total > 0.f ? 1.f / total : 0.f;
            const u32 row = block.first_row + warp.row + 16 * m + 8 * half + lane / 4;
            if (lane % 4 == 0 && row < block.row_end) {
                const float lse = (accumulator.shift(m, half, multiplier) + log2f(total)) * LN_2;
                store_lse(a, block, row, total > 0.f ? lse : -INFINITE);
            }
#pragma unroll
            for (int n = 0; n < S::D / 8; n++) {
                accumulator.sums[m][n][2 * half] *= inverse;
                accumulator.sums[m][n][2 * half + 1] *= inverse;
            }
            if (a.splits == 1 || row >= block.row_end) continue;
            float *target = partial_row(a, block, row);
#pragma unroll
            for (int n = 0; n < S::D / 8; n++) {
                const u32 column = 8 * n + lane % 4 * 2;
                if (column >= head_dim) continue;
                *reinterpret_cast<float2 *>(target + column) =
                    make_float2(accumulator.sums[m][n][2 * half], accumulator.sums[m][n][2 * half + 1]);
            }
        }
    }
    if (a.splits > 1) return;
    store_rows<T, S::D>(accumulator.sums, dynamic_shared(), warp.row, head_dim, [&](u32 own) -> T * {
        const u32 row = block.first_row + own;
        if (row >= block.row_end) return nullptr;
        return row_of<T>(a.out, block.segment.first + block.token(row), block.head(row), head_dim);
    });
}

/// Joins the warps that shared out the keys, through shared memory, and writes the block's rows.
template <typename S>
__device__ __forceinline__ void join_warps(
    const ForwardArguments &a, const ForwardBlock<S::CHUNKED> &block, const Accumulator<S> &accumulator, float multiplier
) {
    using T = typename S::T;
    const u32 lane = threadIdx.x % WARP, key_warp = threadIdx.x / WARP, head_dim = a.common.head_dim;
    float *sums = reinterpret_cast<float *>(dynamic_shared()); // [KEY_WARPS, M, D]
    float *shifts = sums + S::KEY_WARPS * S::M * S::D;         // [KEY_WARPS, M], then the totals
    float *totals = shifts + S::KEY_WARPS * S::M;
    __syncthreads();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const u32 row = key_warp * S::M + 8 * half + lane / 4;
        const float total = row_sum(accumulator.total[0][half]);
        if (lane % 4 == 0) {
            shifts[row] = total > 0.f ? accumulator.shift(0, half, multiplier) : -INFINITE;
            totals[row] = total;
        }
#pragma unroll
        for (int n = 0; n < S::D / 8; n++) {
            *reinterpret_cast<float2 *>(sums + row * S::D + 8 * n + lane % 4 * 2) =
                make_float2(accumulator.sums[0][n][2 * half], accumulator.sums[0][n][2 * half + 1]);
        }
    }
    __syncthreads();
    for (u32 index = threadIdx.x; index < S::M * S::D / 2; index += S::THREADS) {
        const u32 own = index / (S::D / 2), column = index % (S::D / 2) * 2, row = block.first_row + own;
        if (row >= block.row_end || column >= head_dim) continue;
        float shift = -INFINITE;
#pragma unroll
        for (int w = 0; w < S::KEY_WARPS; w++) shift = fmaxf(shift, shifts[w * S::M + own]);
        float total = 0.f, low = 0.f, high = 0.f;
#pragma unroll
        for (int w = 0; w < S::KEY_WARPS; w++) {
            const u32 at = w * S::M + own;
            if (shifts[at] == -INFINITE) continue;
            const float weight = power_of_two(shifts[at] - shift);
            total += weight * totals[at];
            low += weight * sums[at * S::D + column];
            high += weight * sums[at * S::D + column + 1];
        }
        const float inverse = total > 0.f ? 1.f / total : 0.f;
        if (column == 0) store_lse(a, block, row, total > 0.f ? (shift + log2f(total)) * LN_2 : -INFINITE);
        if (a.splits > 1) {
            *reinterpret_cast<float2 *>(partial_row(a, block, row) + column) = make_float2(low * inverse, high * inverse);
        } else {
            T *target = row_of<T>(a.out, block.segment.first + block.token(row), block.head(row), head_dim);
            *reinterpret_cast<u32 *>(target + column) = pack<T>(low * inverse, high * inverse);
        }
    }
}

/// Grid: (H / pack, tiles, splits).
template <typename S> __device__ __forceinline__ void forward(const ForwardArguments &a) {
    using T = typename S::T;
    constexpr int D = S::D;
    const u32 index = a.common.tiles[2 * blockIdx.y], head_dim = a.common.head_dim;
    const u32 pack = S::CHUNKED ? a.pack : 1, first_row = a.common.tiles[2 * blockIdx.y + 1] * S::M;
    ForwardBlock<S::CHUNKED> block{segment_of(a.common, index), blockIdx.x * pack, first_row, 0, pack, blockIdx.z};
    if (S::CHUNKED) block.segment.length = a.lengths[index];
    block.row_end = block.segment.count * pack;
    const u32 group = block.first_head / (a.common.heads / a.common.groups);
    const auto keys = positions_of<T, S::CHUNKED>(a, a.keys, a.key_chunks, block.segment, index, group);
    const auto values = positions_of<T, S::CHUNKED>(a, a.values, a.value_chunks, block.segment, index, group);
    const Visibility visibility(a.common, block.segment.length);
    const Scores score(a.common);

    // The keys of this block, in tiles; then the part of them that belongs to this split.
    auto position = [&](u32 row) { return block.segment.position(block.token(min(row, block.row_end - 1))); };
    const u32 highest = position(block.first_row + S::M - 1);
    u32 tile_begin = visibility.first_key(position(block.first_row)) / S::N;
    u32 tile_end = (visibility.end_key(highest) + S::N - 1) / S::N;
    if (a.splits > 1) {
        const u32 per_split = (tile_end - tile_begin + a.splits - 1) / a.splits;
        tile_begin = min(tile_begin + block.split * per_split, tile_end);
        tile_end = min(tile_begin + per_split, tile_end);
    }

    const u32 warp_index = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    ForwardWarp<S> warp;
    warp.row = warp_index % S::ROW_WARPS * (16 * S::ROW_FRAGMENTS);
    warp.key = warp_index / S::ROW_WARPS * (8 * S::KEY_FRAGMENTS);
    warp.lowest = position(block.first_row + warp.row);
    warp.highest = position(block.first_row + warp.row + 16 * S::ROW_FRAGMENTS - 1);
#pragma unroll
    for (int m = 0; m < S::ROW_FRAGMENTS; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            warp.positions[m][half] = position(block.first_row + warp.row + 16 * m + 8 * half + lane / 4);
        }
    }

    const u32 query_tile = shared_address(dynamic_shared()), stages = query_tile + S::QUERY_BYTES;
    auto load_keys = [&](u32 tile, u32 stage) {
        const u32 first = tile * S::N, to = stages + 2 * stage * S::TILE_BYTES;
        auto source = [&](const auto &from) {
            return [&, first](u32 row) { return first + row < block.segment.length ? from(first + row) : nullptr; };
        };
        copy_tile<D, S::N, S::THREADS>(to, keys.anywhere(), head_dim, source(keys));
        copy_tile<D, S::N, S::THREADS>(to + S::TILE_BYTES, values.anywhere(), head_dim, source(values));
    };

    // From the last tile to the first: the partly visible ones come first.
    const u32 tiles = tile_end - tile_begin;
    auto load_query = [&](u32 own) -> const T * {
        const u32 row = block.first_row + own;
        if (row >= block.row_end) return nullptr;
        return row_of<const T>(a.queries, block.segment.first + block.token(row), block.head(row), head_dim);
    };
    copy_tile<D, S::M, S::THREADS>(query_tile, static_cast<const T *>(a.queries.data), head_dim, load_query);
#pragma unroll
    for (int stage = 0; stage < S::STAGES - 1; stage++) {
        if (stage < tiles) load_keys(tile_end - 1 - stage, stage);
        copy_commit();
    }
    Accumulator<S> accumulator;
    accumulator.reset();
    LeftMatrix<D, S::ROW_FRAGMENTS, S::QUERIES_IN_REGISTERS> queries;
    u32 stage = 0;
    for (u32 done = 0; done < tiles; done++) {
        copy_wait<S::STAGES - 2>();
        __syncthreads();
        if (done == 0) queries.fill(query_tile, warp.row);
        const u32 ahead = done + S::STAGES - 1;
        if (ahead < tiles) load_keys(tile_end - 1 - ahead, ahead % S::STAGES);
        copy_commit();
        const u32 first_key = (tile_end - 1 - done) * S::N, at = stages + 2 * stage * S::TILE_BYTES;
        stage = stage + 1 == S::STAGES ? 0 : stage + 1;
        // A warp has nothing to do where all keys lie after its last query.
        if (first_key + warp.key >= visibility.end_key(warp.highest)) continue;
        forward_tile<S>(accumulator, queries, warp, visibility, score, first_key, at, at + S::TILE_BYTES);
    }
    copy_wait<0>();
    if constexpr (S::KEY_WARPS == 1) {
        finish_rows<S>(a, block, warp, accumulator, score.multiplier);
    } else {
        join_warps<S>(a, block, accumulator, score.multiplier);
    }
}

/// Joins the parts of `splits` blocks. `lanes` (a power of two, at least D / 2) threads per row and head, of which a block
/// has 256 / lanes; grid: rows of T · H.
template <typename T> __device__ __forceinline__ void merge(const ForwardArguments &a) {
    const u32 heads = a.common.heads, head_dim = a.common.head_dim, pairs = head_dim / 2;
    u32 lanes = 1;
    while (lanes < pairs) lanes *= 2;
    const u32 lane = threadIdx.x % lanes;
    const u64 index = static_cast<u64>(blockIdx.x) * (blockDim.x / lanes) + threadIdx.x / lanes;
    const u64 count = static_cast<u64>(a.common.rows) * heads;
    if (index >= count || lane >= pairs) return;
    const u32 row = index / heads, head = index % heads, column = 2 * lane;
    const u64 at = static_cast<u64>(head) * a.common.rows + row;
    auto lse = [&](u32 split) { return a.partial_lse[split * count + at]; };
    float highest = -INFINITE;
#pragma unroll 8
    for (u32 split = 0; split < a.splits; split++) highest = fmaxf(highest, lse(split));
    float total = 0.f, low = 0.f, high = 0.f;
#pragma unroll 8
    for (u32 split = 0; split < a.splits; split++) {
        // A part without keys has zeros as its result.
        const float part = lse(split), weight = part == -INFINITE ? 0.f : power_of_two((part - highest) * LOG2_E);
        const float2 value = *reinterpret_cast<const float2 *>(a.partial + (split * count + index) * head_dim + column);
        total += weight;
        low += weight * value.x;
        high += weight * value.y;
    }
    const float inverse = total > 0.f ? 1.f / total : 0.f;
    T *target = row_of<T>(a.out, row, head, head_dim) + column;
    target[0] = narrow<T>(low * inverse);
    target[1] = narrow<T>(high * inverse);
    if (column == 0 && a.lse != nullptr) a.lse[at] = total > 0.f ? highest + log2f(total) * LN_2 : -INFINITE;
}

} // namespace attention
