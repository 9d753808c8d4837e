// Gradients of attention, with the weights computed again from the scores and the forward pass's lse.
//
// Two passes, so that nothing is added atomically and results repeat exactly: `backward_queries` walks over keys for
// a block of queries (three products), `backward_keys` over queries for a block of keys (four). A segment's keys are its
// own rows. P: weights, dP: d_out · valuesᵀ, dS = P ∘ (dP − delta) ∘ slope.
#pragma once

#include "arguments.cuh"
#include "tile.cuh"

namespace attention {

template <typename T_, int D_, int M_, int N_, int WARPS_, bool IN_REGISTERS_, int STAGES_ = 2> struct QueriesShape {
    using T = T_;
    static constexpr int D = D_, M = M_, N = N_, WARPS = WARPS_, STAGES = STAGES_;
    static constexpr bool IN_REGISTERS = IN_REGISTERS_;
    static constexpr int THREADS = 32 * WARPS;
    static constexpr int ROW_FRAGMENTS = M / WARPS / 16, KEY_FRAGMENTS = N / 8;
    static constexpr int ROWS_BYTES = M * Tile<D>::ROW_BYTES, TILE_BYTES = N * Tile<D>::ROW_BYTES;
    static constexpr int SHARED_BYTES = 2 * ROWS_BYTES + 2 * STAGES * TILE_BYTES;
};

/// `M` keys per block and `N` queries per tile; `QUERY_WARPS` share out the queries of a tile, the others the keys. Each
/// warp takes `STEP` queries at a time. A block computes `COLUMNS` of the D columns.
template <typename T_, int D_, int M_, int N_, int KEY_WARPS_, int QUERY_WARPS_, int STEP_, int COLUMNS_, bool IN_REGISTERS_, int STAGES_ = 2>
struct KeysShape {
    using T = T_;
    static constexpr int D = D_, M = M_, N = N_, KEY_WARPS = KEY_WARPS_, QUERY_WARPS = QUERY_WARPS_, STAGES = STAGES_;
    static constexpr int STEP = STEP_, COLUMNS = COLUMNS_;
    static constexpr bool IN_REGISTERS = IN_REGISTERS_;
    static constexpr int THREADS = 32 * KEY_WARPS * QUERY_WARPS;
    static constexpr int ROW_FRAGMENTS = M / KEY_WARPS / 16;
    static constexpr int ROWS_BYTES = M * Tile<D>::ROW_BYTES, TILE_BYTES = N * Tile<D>::ROW_BYTES;
    static constexpr int STAGE_BYTES = 2 * TILE_BYTES + 2 * N * 4;
    static constexpr int STAGED_BYTES = 2 * ROWS_BYTES + STAGES * STAGE_BYTES;
    static constexpr int JOIN_BYTES = (QUERY_WARPS - 1) * M * COLUMNS * 4 * 2;
    static constexpr int SHARED_BYTES = STAGED_BYTES > JOIN_BYTES ? STAGED_BYTES : JOIN_BYTES;
    static_assert(N / QUERY_WARPS % STEP == 0, "whole steps");
};

/// The weight of one pair (0 for a score of −∞), and the weight times the slope of the cap. `lse` in powers of two.
template <bool CAPPED> __device__ __forceinline__ float2 weigh(const Scores &score, float value, float lse) {
    if (!CAPPED) {
        const float weight = power_of_two(value * score.multiplier - lse);
        return make_float2(weight, weight);
    }
    const float bent = score.bend(value);
    const float weight = value == -INFINITE ? 0.f : power_of_two(bent * score.multiplier - lse);
    return make_float2(weight, weight * score.slope(bent));
}

/// delta = Σ out · d_out per row and head. `lanes` (a power of two, at least D / 8) lanes per row; grid: rows of H · T.
template <typename T> __device__ __forceinline__ void delta(const BackwardArguments &a) {
    constexpr u32 LANES = 32;
    const u32 pieces = a.common.head_dim / 8;
    u32 lanes = 1;
    while (lanes < pieces) lanes *= 2;
    const u32 lane = threadIdx.x % lanes;
    const u64 index = static_cast<u64>(blockIdx.x) * (blockDim.x / lanes) + threadIdx.x / lanes;
    const u64 count = static_cast<u64>(a.common.rows) * a.common.heads;
    const u32 row = index / a.common.heads, head = index % a.common.heads;
    float sum = 0.f;
    if (index < count && lane < pieces) {
        constexpr int STEP = 8;
        const T *out = row_of<const T>(a.out, row, head, a.common.head_dim) + STEP * lane;
        const T *d_out = row_of<const T>(a.d_out, row, head, a.common.head_dim) + STEP * lane;
        struct alignas(16) Piece { T values[16 / sizeof(T)]; };
#pragma unroll
        for (int part = 0; part < STEP; part += 16 / sizeof(T)) {
            const Piece left = *reinterpret_cast<const Piece *>(out + part);
            const Piece right = *reinterpret_cast<const Piece *>(d_out + part);
#pragma unroll
            for (int i = 0; i < 16 / (int)sizeof(T); i++) sum += widen(left.values[i]) * widen(right.values[i]);
        }
    }
    for (u32 with = LANES / 2; with > 0; with /= 2) {
        const float other = __shfl_xor_sync(~0u, sum, with);
        if (with < lanes) sum += other;
    }
    if (index < count && lane == 0) a.delta[static_cast<u64>(head) * a.common.rows + row] = sum;
}

// ---------------------------------------------------------------------------------------------------- d_queries

template <typename S> struct QueriesWarp {
    u32 row, lowest, highest;
    /// Per row of each fragment: its position, lse in powers of two, delta.
    u32 positions[S::ROW_FRAGMENTS][2];
    float lse[S::ROW_FRAGMENTS][2], delta[S::ROW_FRAGMENTS][2];
};

/// Scores become weights times the slope of the cap.
template <bool CAPPED, typename S>
__device__ __forceinline__ void weigh_queries(
    float (&weights)[S::ROW_FRAGMENTS][S::KEY_FRAGMENTS][4], const QueriesWarp<S> &warp, const Scores &score
) {
#pragma unroll
    for (int m = 0; m < S::ROW_FRAGMENTS; m++) {
#pragma unroll
        for (int n = 0; n < S::KEY_FRAGMENTS; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                weights[m][n][i] = weigh<CAPPED>(score, weights[m][n][i], warp.lse[m][i / 2]).y;
            }
        }
    }
}

template <typename S, typename Left>
__device__ __forceinline__ void queries_tile(
    float (&sums)[S::ROW_FRAGMENTS][S::D / 8][4], const Left &queries, const Left &d_out, const QueriesWarp<S> &warp,
    const Visibility &visibility, const Scores &score, u32 first_key, u32 keys, u32 values
) {
    using T = typename S::T;
    const u32 lane = threadIdx.x % WARP;
    float weights[S::ROW_FRAGMENTS][S::KEY_FRAGMENTS][4];
    multiply_rows<T>(weights, queries, keys, 0);
    if (!visibility.sees_all(warp.lowest, warp.highest, first_key, S::N)) {
#pragma unroll
        for (int m = 0; m < S::ROW_FRAGMENTS; m++) {
#pragma unroll
            for (int n = 0; n < S::KEY_FRAGMENTS; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const u32 key = first_key + 8 * n + lane % 4 * 2 + i % 2;
                    if (!visibility.sees(warp.positions[m][i / 2], key)) weights[m][n][i] = -INFINITE;
                }
            }
        }
    }
    if (score.capped()) {
        weigh_queries<true>(weights, warp, score);
    } else {
        weigh_queries<false>(weights, warp, score);
    }
    float slopes[S::ROW_FRAGMENTS][S::KEY_FRAGMENTS][4];
    multiply_rows<T>(slopes, d_out, values, 0);
    Narrowed<T, S::ROW_FRAGMENTS, S::KEY_FRAGMENTS> narrowed;
#pragma unroll
    for (int m = 0; m < S::ROW_FRAGMENTS; m++) {
#pragma unroll
        for (int n = 0; n < S::KEY_FRAGMENTS; n++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float delta = warp.delta[m][half];
                narrowed.set(
                    m, n, half, weights[m][n][2 * half] * (slopes[m][n][2 * half] - delta),
                    weights[m][n][2 * half + 1] * (slopes[m][n][2 * half + 1] - delta)
                );
            }
        }
    }
    multiply_turned<T, S::D>(sums, narrowed, keys, 0, 0);
}

/// Grid: (H, tiles of M queries).
template <typename S> __device__ __forceinline__ void backward_queries(const BackwardArguments &a) {
    using T = typename S::T;
    constexpr int D = S::D;
    const u32 head_dim = a.common.head_dim, head = blockIdx.x, group = head / (a.common.heads / a.common.groups);
    const Segment segment = segment_of(a.common, a.common.tiles[2 * blockIdx.y]);
    const u32 first_row = a.common.tiles[2 * blockIdx.y + 1] * S::M, last_row = min(first_row + S::M, segment.count) - 1;
    const Visibility visibility(a.common, segment.count);
    const Scores score(a.common);
    const u32 tile_begin = visibility.first_key(first_row) / S::N, tile_end = (visibility.end_key(last_row) + S::N - 1) / S::N;

    const u32 lane = threadIdx.x % WARP;
    QueriesWarp<S> warp;
    warp.row = threadIdx.x / WARP * (16 * S::ROW_FRAGMENTS);
    warp.lowest = min(first_row + warp.row, last_row);
    warp.highest = min(first_row + warp.row + 16 * S::ROW_FRAGMENTS - 1, last_row);
#pragma unroll
    for (int m = 0; m < S::ROW_FRAGMENTS; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const u32 row = min(first_row + warp.row + 16 * m + 8 * half + lane / 4, last_row);
            const u64 at = static_cast<u64>(head) * a.common.rows + segment.first + row;
            warp.positions[m][half] = row;
            warp.lse[m][half] = a.lse[at] * LOG2_E;
            warp.delta[m][half] = a.delta[at];
        }
    }

    const u32 query_tile = shared_address(dynamic_shared()), d_out_tile = query_tile + S::ROWS_BYTES;
    const u32 stages = d_out_tile + S::ROWS_BYTES;
    auto copy_rows = [&](u32 to, const Rows &from) {
        copy_tile<D, S::M, S::THREADS>(to, static_cast<const T *>(from.data), head_dim, [&](u32 row) -> const T * {
            if (first_row + row > last_row) return nullptr;
            return row_of<const T>(from, segment.first + first_row + row, head, head_dim);
        });
    };
    auto copy_keys = [&](u32 to, const Rows &from, u32 first) {
        const T *start = row_of<const T>(from, segment.first, group, head_dim);
        copy_tile<D, S::N, S::THREADS>(to, start, head_dim, [&, start, first](u32 row) -> const T * {
            return first + row < segment.count ? start + (first + row) * from.stride : nullptr;
        });
    };
    auto load_keys = [&](u32 tile, u32 stage) {
        const u32 to = stages + 2 * stage * S::TILE_BYTES;
        copy_keys(to, a.keys, tile * S::N);
        copy_keys(to + S::TILE_BYTES, a.values, tile * S::N);
    };
    copy_rows(query_tile, a.queries);
    copy_rows(d_out_tile, a.d_out);
    const u32 tiles = tile_end - tile_begin;
#pragma unroll
    for (int stage = 0; stage < S::STAGES - 1; stage++) {
        if (stage < tiles) load_keys(tile_end - 1 - stage, stage);
        copy_commit();
    }

    float sums[S::ROW_FRAGMENTS][D / 8][4];
    clear(sums);
    LeftMatrix<D, S::ROW_FRAGMENTS, S::IN_REGISTERS> queries, d_out;
    u32 stage = 0;
    for (u32 done = 0; done < tiles; done++) {
        copy_wait<S::STAGES - 2>();
        __syncthreads();
        if (done == 0) {
            queries.fill(query_tile, warp.row);
            d_out.fill(d_out_tile, warp.row);
        }
        const u32 ahead = done + S::STAGES - 1;
        if (ahead < tiles) load_keys(tile_end - 1 - ahead, ahead % S::STAGES);
        copy_commit();
        const u32 first_key = (tile_end - 1 - done) * S::N, at = stages + 2 * stage * S::TILE_BYTES;
        stage = stage + 1 == S::STAGES ? 0 : stage + 1;
        if (first_key >= visibility.end_key(warp.highest)) continue;
        queries_tile<S>(sums, queries, d_out, warp, visibility, score, first_key, at, at + S::TILE_BYTES);
    }
    copy_wait<0>();
#pragma unroll
    for (int m = 0; m < S::ROW_FRAGMENTS; m++) {
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sums[m][n][i] *= a.common.scale;
        }
    }
    store_rows<T, D>(sums, dynamic_shared(), warp.row, head_dim, [&](u32 own) -> T * {
        if (first_row + own > last_row) return nullptr;
        return row_of<T>(a.d_queries, segment.first + first_row + own, head, head_dim);
    });
}

// --------------------------------------------------------------------------------------- d_keys and d_values

template <typename S> struct KeysWarp {
    u32 key, query;      // first key in the block, first query in a tile
    u32 lowest, highest; // positions of its keys
};

/// One stage of shared memory: queries, their d_out, lse and delta.
struct KeysStage {
    u32 queries, d_out;
    const float *lse, *delta;
};

/// Scores become weights, narrowed for the product with d_out, and in place weights times the slope of the cap.
template <typename S, bool CAPPED>
__device__ __forceinline__ void weigh_keys(
    float (&weights)[S::ROW_FRAGMENTS][S::STEP / 8][4],
    Narrowed<typename S::T, S::ROW_FRAGMENTS, S::STEP / 8> &narrowed, const Scores &score, const float *lse
) {
#pragma unroll
    for (int n = 0; n < S::STEP / 8; n++) {
        const float2 own = *reinterpret_cast<const float2 *>(lse + 8 * n + threadIdx.x % 4 * 2);
#pragma unroll
        for (int m = 0; m < S::ROW_FRAGMENTS; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float2 low = weigh<CAPPED>(score, weights[m][n][2 * half], own.x * LOG2_E);
                const float2 high = weigh<CAPPED>(score, weights[m][n][2 * half + 1], own.y * LOG2_E);
                narrowed.set(m, n, half, low.x, high.x);
                weights[m][n][2 * half] = low.y;
                weights[m][n][2 * half + 1] = high.y;
            }
        }
    }
}

template <typename S, typename Left>
__device__ __forceinline__ void keys_step(
    float (&d_keys)[S::ROW_FRAGMENTS][S::COLUMNS / 8][4], float (&d_values)[S::ROW_FRAGMENTS][S::COLUMNS / 8][4],
    const Left &keys, const Left &values, const KeysStage &stage, const KeysWarp<S> &warp, const Visibility &visibility,
    const Scores &score, u32 first_query, u32 row, u32 piece
) {
    using T = typename S::T;
    const u32 lane = threadIdx.x % WARP;
    float weights[S::ROW_FRAGMENTS][S::STEP / 8][4];
    multiply_rows<T>(weights, keys, stage.queries, row);
    // Rows beyond the last query must weigh nothing: they are summed over.
    const u32 last_query = first_query + row + S::STEP - 1;
    const bool all = last_query < visibility.length &&
        visibility.sees_all(first_query + row, last_query, warp.lowest, warp.highest - warp.lowest + 1);
    if (!all) {
#pragma unroll
        for (int m = 0; m < S::ROW_FRAGMENTS; m++) {
#pragma unroll
            for (int n = 0; n < S::STEP / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const u32 query = first_query + row + 8 * n + lane % 4 * 2 + i % 2;
                    const u32 key = warp.lowest + 16 * m + i / 2 * 8 + lane / 4;
                    if (query >= visibility.length || !visibility.sees(query, key)) weights[m][n][i] = -INFINITE;
                }
            }
        }
    }
    Narrowed<T, S::ROW_FRAGMENTS, S::STEP / 8> narrowed;
    if (score.capped()) {
        weigh_keys<S, true>(weights, narrowed, score, stage.lse + row);
    } else {
        weigh_keys<S, false>(weights, narrowed, score, stage.lse + row);
    }
    multiply_turned<T, S::D>(d_values, narrowed, stage.d_out, row, piece);

    float slopes[S::ROW_FRAGMENTS][S::STEP / 8][4];
    multiply_rows<T>(slopes, values, stage.d_out, row);
#pragma unroll
    for (int n = 0; n < S::STEP / 8; n++) {
        const float2 delta = *reinterpret_cast<const float2 *>(stage.delta + row + 8 * n + lane % 4 * 2);
#pragma unroll
        for (int m = 0; m < S::ROW_FRAGMENTS; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                narrowed.set(
                    m, n, half, weights[m][n][2 * half] * (slopes[m][n][2 * half] - delta.x),
                    weights[m][n][2 * half + 1] * (slopes[m][n][2 * half + 1] - delta.y)
                );
            }
        }
    }
    multiply_turned<T, S::D>(d_keys, narrowed, stage.queries, row, piece);
}

/// Adds the sums of the warps that shared out the queries to those of the first of them.
template <typename S, int M, int N>
__device__ __forceinline__ void join_queries(float (&d_keys)[M][N][4], float (&d_values)[M][N][4]) {
    const u32 key_thread = threadIdx.x % (32 * S::KEY_WARPS), query_warp = threadIdx.x / (32 * S::KEY_WARPS);
    constexpr int STRIDE = 32 * S::KEY_WARPS;
    float *memory = reinterpret_cast<float *>(dynamic_shared()) + key_thread;
    auto slot = [&](int warp, int which, int m, int n, int i) -> float & {
        return memory[((((warp - 1) * 2 + which) * M + m) * N + n) * 4 * STRIDE + i * STRIDE];
    };
    __syncthreads();
#pragma unroll
    for (int warp = 1; warp < S::QUERY_WARPS; warp++) {
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int n = 0; n < N; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if (query_warp != warp) continue;
                    slot(warp, 0, m, n, i) = d_keys[m][n][i];
                    slot(warp, 1, m, n, i) = d_values[m][n][i];
                }
            }
        }
    }
    __syncthreads();
    if (query_warp != 0) return;
#pragma unroll
    for (int warp = 1; warp < S::QUERY_WARPS; warp++) {
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int n = 0; n < N; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    d_keys[m][n][i] += slot(warp, 0, m, n, i);
                    d_values[m][n][i] += slot(warp, 1, m, n, i);
                }
            }
        }
    }
}

/// Writes rows `first..` of one of the two results, each pair of columns where it lies in the accumulator.
template <typename S, int M, int N>
__device__ __forceinline__ void store_keys(
    const BackwardArguments &a, const Segment &segment, const Rows &target, u32 which, u32 first, u32 group, u32 split,
    u32 piece, float scale, const float (&sums)[M][N][4]
) {
    using T = typename S::T;
    const u32 lane = threadIdx.x % WARP, head_dim = a.common.head_dim;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const u32 key = first + 16 * m + 8 * half + lane / 4;
            if (key >= segment.count) continue;
            const u64 part = (static_cast<u64>(split) * 2 + which) * a.common.rows + segment.first + key;
#pragma unroll
            for (int n = 0; n < N; n++) {
                const u32 column = 8 * (piece + n) + lane % 4 * 2;
                if (column >= head_dim) continue;
                const float low = sums[m][n][2 * half] * scale, high = sums[m][n][2 * half + 1] * scale;
                if (a.splits > 1) {
                    float *to = a.partial + (part * a.common.groups + group) * head_dim + column;
                    *reinterpret_cast<float2 *>(to) = make_float2(low, high);
                } else {
                    T *to = row_of<T>(target, segment.first + key, group, head_dim) + column;
                    *reinterpret_cast<u32 *>(to) = pack<T>(low, high);
                }
            }
        }
    }
}

/// Grid: (G · splits, tiles of M keys, D / COLUMNS).
template <typename S> __device__ __forceinline__ void backward_keys(const BackwardArguments &a) {
    using T = typename S::T;
    constexpr int D = S::D;
    const u32 head_dim = a.common.head_dim, group = blockIdx.x / a.splits, split = blockIdx.x % a.splits;
    const u32 share = a.common.heads / a.common.groups, per_split = (share + a.splits - 1) / a.splits;
    const u32 head_begin = group * share + min(split * per_split, share);
    const u32 head_end = group * share + min((split + 1) * per_split, share);
    const Segment segment = segment_of(a.common, a.common.tiles[2 * blockIdx.y]);
    const u32 first_key = a.common.tiles[2 * blockIdx.y + 1] * S::M, last_key = min(first_key + S::M, segment.count) - 1;
    const Visibility visibility(a.common, segment.count);
    const Scores score(a.common);
    const u32 piece = blockIdx.z * (S::COLUMNS / 8);

    // The queries that see any of these keys, in tiles.
    const u32 tile_begin = a.common.causal ? first_key / S::N : 0;
    const u32 query_end = a.common.window != 0 ? min(segment.count, last_key + a.common.window) : segment.count;
    const u32 tile_end = (query_end + S::N - 1) / S::N;

    const u32 warp_index = threadIdx.x / WARP;
    KeysWarp<S> warp;
    warp.key = warp_index % S::KEY_WARPS * (16 * S::ROW_FRAGMENTS);
    warp.query = warp_index / S::KEY_WARPS * (S::N / S::QUERY_WARPS);
    warp.lowest = first_key + warp.key;
    warp.highest = warp.lowest + 16 * S::ROW_FRAGMENTS - 1;

    const u32 key_tile = shared_address(dynamic_shared()), value_tile = key_tile + S::ROWS_BYTES;
    const u32 stages = value_tile + S::ROWS_BYTES;
    auto copy_keys = [&](u32 to, const Rows &from) {
        copy_tile<D, S::M, S::THREADS>(to, static_cast<const T *>(from.data), head_dim, [&](u32 row) -> const T * {
            if (first_key + row > last_key) return nullptr;
            return row_of<const T>(from, segment.first + first_key + row, group, head_dim);
        });
    };
    auto load_queries = [&](u32 head, u32 tile, u32 stage) {
        const u32 first = tile * S::N, to = stages + stage * S::STAGE_BYTES;
        auto copy_rows = [&](u32 to, const Rows &from) {
            const T *start = row_of<const T>(from, segment.first, head, head_dim);
            copy_tile<D, S::N, S::THREADS>(to, start, head_dim, [&](u32 row) -> const T * {
                return first + row < segment.count ? start + (first + row) * from.stride : nullptr;
            });
        };
        copy_rows(to, a.queries);
        copy_rows(to + S::TILE_BYTES, a.d_out);
        for (u32 index = threadIdx.x; index < 2 * S::N; index += S::THREADS) {
            const u32 row = first + index % S::N;
            const float *source = index < S::N ? a.lse : a.delta;
            const bool valid = row < segment.count;
            const u64 at = static_cast<u64>(head) * a.common.rows + segment.first + (valid ? row : 0);
            copy_4(to + 2 * S::TILE_BYTES + 4 * index, source + at, valid);
        }
    };

    copy_keys(key_tile, a.keys);
    copy_keys(value_tile, a.values);
    const u32 tiles = (head_end - head_begin) * (tile_end - tile_begin);
    u32 load_head = head_begin, load_tile = tile_begin;
    auto load_next = [&](u32 stage) {
        load_queries(load_head, load_tile, stage);
        if (++load_tile == tile_end) {
            load_tile = tile_begin;
            load_head++;
        }
    };
#pragma unroll
    for (int stage = 0; stage < S::STAGES - 1; stage++) {
        if (stage < tiles) load_next(stage);
        copy_commit();
    }

    float d_keys[S::ROW_FRAGMENTS][S::COLUMNS / 8][4], d_values[S::ROW_FRAGMENTS][S::COLUMNS / 8][4];
    clear(d_keys);
    clear(d_values);
    LeftMatrix<D, S::ROW_FRAGMENTS, S::IN_REGISTERS> keys, values;
    u32 tile = tile_begin, stage = 0, ahead_stage = S::STAGES - 1;
    for (u32 done = 0; done < tiles; done++) {
        copy_wait<S::STAGES - 2>();
        __syncthreads();
        if (done == 0) {
            keys.fill(key_tile, warp.key);
            values.fill(value_tile, warp.key);
        }
        if (done + S::STAGES - 1 < tiles) load_next(ahead_stage);
        copy_commit();
        const u32 at = stages + stage * S::STAGE_BYTES;
        const float *statistics = reinterpret_cast<const float *>(
            dynamic_shared() + 2 * S::ROWS_BYTES + stage * S::STAGE_BYTES + 2 * S::TILE_BYTES);
        const KeysStage current{at, at + S::TILE_BYTES, statistics, statistics + S::N};
        const u32 first_query = tile * S::N;
        if (++tile == tile_end) tile = tile_begin;
        stage = stage + 1 == S::STAGES ? 0 : stage + 1;
        ahead_stage = ahead_stage + 1 == S::STAGES ? 0 : ahead_stage + 1;
#pragma unroll 1
        for (u32 row = warp.query; row < warp.query + S::N / S::QUERY_WARPS; row += S::STEP) {
            // Nothing to do where all queries lie before the warp's first key.
            if (a.common.causal && first_query + row + S::STEP - 1 < warp.lowest) continue;
            keys_step<S>(d_keys, d_values, keys, values, current, warp, visibility, score, first_query, row, piece);
        }
    }
    copy_wait<0>();
    if constexpr (S::QUERY_WARPS > 1) {
        join_queries<S>(d_keys, d_values);
        if (warp.query != 0) return;
    }
    store_keys<S>(a, segment, a.d_keys, 0, warp.lowest, group, split, piece, a.common.scale, d_keys);
    store_keys<S>(a, segment, a.d_values, 1, warp.lowest, group, split, piece, 1.f, d_values);
}

/// Adds the parts of `splits` blocks. A thread per (row, group, pair of columns).
template <typename T> __device__ __forceinline__ void reduce(const BackwardArguments &a) {
    const u32 head_dim = a.common.head_dim, pairs = head_dim / 2;
    const u64 index = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    const u64 elements = static_cast<u64>(a.common.rows) * a.common.groups * pairs;
    if (index >= elements) return;
    const u32 row = index / (a.common.groups * pairs), group = index / pairs % a.common.groups, column = index % pairs * 2;
#pragma unroll
    for (u32 which = 0; which < 2; which++) {
        float low = 0.f, high = 0.f;
        for (u32 split = 0; split < a.splits; split++) {
            const float2 part = reinterpret_cast<const float2 *>(a.partial)[(split * 2 + which) * elements + index];
            low += part.x;
            high += part.y;
        }
        T *to = row_of<T>(which == 0 ? a.d_keys : a.d_values, row, group, head_dim) + column;
        to[0] = narrow<T>(low);
        to[1] = narrow<T>(high);
    }
}

} // namespace attention
