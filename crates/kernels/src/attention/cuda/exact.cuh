// The same passes for f32, without matrix units: every product is a fused multiply-add in f32.
//
// A warp owns 8 rows; its lanes are 32 positions of the other side while scores are computed, and 32 columns while
// they are applied. D: the head size rounded up to 64, 128 or 256.
#pragma once

#include "backward.cuh"
#include "forward.cuh"

namespace attention {

constexpr int EXACT_ROWS = 8;

template <int D_, int WARPS_> struct ExactShape {
    static constexpr int D = D_, THREADS = 32 * WARPS_, M = EXACT_ROWS * WARPS_, COLUMNS = D / 32;
    /// Rows that lanes walk in parallel are four numbers longer, so that lanes meet different banks.
    static constexpr int STRIDE = D + 4;
};

template <int D, int WARPS, bool CHUNKED_> struct ExactForward : ExactShape<D, WARPS> {
    using Shape = ExactShape<D, WARPS>;
    static constexpr bool CHUNKED = CHUNKED_;
    static constexpr int SHARED_BYTES = 4 * (Shape::M * D + 2 * 32 * Shape::STRIDE + Shape::M * 32);
};

template <int D, int WARPS> struct ExactBackward : ExactShape<D, WARPS> {
    using Shape = ExactShape<D, WARPS>;
    static constexpr int SHARED_BYTES = 4 * (2 * Shape::M * D + 2 * 32 * Shape::STRIDE + 2 * Shape::M * 32);
};

template <int D, int ROWS, int STRIDE, int THREADS, typename RowPointer>
__device__ __forceinline__ void copy_exact(float *tile, const float *anywhere, u32 head_dim, RowPointer row_pointer) {
    for (u32 index = threadIdx.x; index < ROWS * D / 4; index += THREADS) {
        const u32 row = index / (D / 4), piece = index % (D / 4);
        const float *source = row_pointer(row);
        const bool valid = source != nullptr && piece * 4 < head_dim;
        copy_16(shared_address(tile + row * STRIDE + piece * 4), valid ? source + piece * 4 : anywhere, valid);
    }
}

/// products[r] = rows[r] · lanes[lane], the rows at a stride of D.
template <int D, int STRIDE>
__device__ __forceinline__ void multiply_exact(float (&products)[EXACT_ROWS], const float *rows, const float *lanes) {
    const float4 *own = reinterpret_cast<const float4 *>(lanes + threadIdx.x % WARP * STRIDE);
#pragma unroll
    for (int r = 0; r < EXACT_ROWS; r++) products[r] = 0.f;
#pragma unroll 4
    for (int step = 0; step < D / 4; step++) {
        const float4 right = own[step];
#pragma unroll
        for (int r = 0; r < EXACT_ROWS; r++) {
            const float4 left = reinterpret_cast<const float4 *>(rows + r * D)[step];
            products[r] = fmaf(left.x, right.x, products[r]);
            products[r] = fmaf(left.y, right.y, products[r]);
            products[r] = fmaf(left.z, right.z, products[r]);
            products[r] = fmaf(left.w, right.w, products[r]);
        }
    }
}

/// sums[r][column] += Σ weights[r][j] · lanes[j][column], a warp's weights as `[8, 32]`.
template <int COLUMNS, int STRIDE>
__device__ __forceinline__ void apply_exact(float (&sums)[EXACT_ROWS][COLUMNS], const float *weights, const float *lanes) {
    const u32 lane = threadIdx.x % WARP;
#pragma unroll 2
    for (int j = 0; j < 32; j++) {
        float values[COLUMNS];
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) values[c] = lanes[j * STRIDE + lane + 32 * c];
#pragma unroll
        for (int r = 0; r < EXACT_ROWS; r++) {
            const float weight = weights[r * 32 + j];
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) sums[r][c] = fmaf(weight, values[c], sums[r][c]);
        }
    }
}

template <int COLUMNS> __device__ __forceinline__ void clear(float (&sums)[EXACT_ROWS][COLUMNS]) {
#pragma unroll
    for (int r = 0; r < EXACT_ROWS; r++) {
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) sums[r][c] = 0.f;
    }
}

__device__ __forceinline__ float warp_maximum(float value) {
#pragma unroll
    for (int with = 16; with > 0; with /= 2) value = fmaxf(value, __shfl_xor_sync(~0u, value, with));
    return value;
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int with = 16; with > 0; with /= 2) value += __shfl_xor_sync(~0u, value, with);
    return value;
}

/// Grid: (H / pack, tiles of M rows, splits).
template <typename S> __device__ __forceinline__ void forward_exact(const ForwardArguments &a) {
    constexpr int D = S::D, STRIDE = S::STRIDE;
    const u32 index = a.common.tiles[2 * blockIdx.y], head_dim = a.common.head_dim;
    const u32 pack = S::CHUNKED ? a.pack : 1, first_row = a.common.tiles[2 * blockIdx.y + 1] * S::M;
    ForwardBlock<S::CHUNKED> block{segment_of(a.common, index), blockIdx.x * pack, first_row, 0, pack, blockIdx.z};
    if (S::CHUNKED) block.segment.length = a.lengths[index];
    block.row_end = block.segment.count * pack;
    const u32 group = block.first_head / (a.common.heads / a.common.groups);
    const auto keys = positions_of<float, S::CHUNKED>(a, a.keys, a.key_chunks, block.segment, index, group);
    const auto values = positions_of<float, S::CHUNKED>(a, a.values, a.value_chunks, block.segment, index, group);
    const Visibility visibility(a.common, block.segment.length);
    const Scores score(a.common);
    auto position = [&](u32 row) { return block.segment.position(block.token(min(row, block.row_end - 1))); };
    u32 key_begin = visibility.first_key(position(block.first_row)) / 32 * 32;
    u32 key_end = visibility.end_key(position(block.first_row + S::M - 1));
    if (a.splits > 1) {
        const u32 per_split = (key_end - key_begin + 32 * a.splits - 1) / (32 * a.splits) * 32;
        key_begin = min(key_begin + block.split * per_split, key_end);
        key_end = min(key_begin + per_split, key_end);
    }

    float *query_tile = reinterpret_cast<float *>(dynamic_shared()), *key_tile = query_tile + S::M * D;
    float *value_tile = key_tile + 32 * STRIDE;
    const u32 lane = threadIdx.x % WARP, own = threadIdx.x / WARP * EXACT_ROWS;
    float *weights = value_tile + 32 * STRIDE + own * 32;
    copy_exact<D, S::M, D, S::THREADS>(query_tile, static_cast<const float *>(a.queries.data), head_dim, [&](u32 row) -> const float * {
        row += block.first_row;
        if (row >= block.row_end) return nullptr;
        return row_of<const float>(a.queries, block.segment.first + block.token(row), block.head(row), head_dim);
    });
    copy_commit();

    float sums[EXACT_ROWS][S::COLUMNS], maximum[EXACT_ROWS], total[EXACT_ROWS];
    clear(sums);
#pragma unroll
    for (int r = 0; r < EXACT_ROWS; r++) {
        maximum[r] = -INFINITE;
        total[r] = 0.f;
    }
    for (u32 first_key = key_begin; first_key < key_end; first_key += 32) {
        __syncthreads();
        auto source = [&](const auto &from) {
            return [&](u32 row) { return first_key + row < block.segment.length ? from(first_key + row) : nullptr; };
        };
        copy_exact<D, 32, STRIDE, S::THREADS>(key_tile, keys.anywhere(), head_dim, source(keys));
        copy_exact<D, 32, STRIDE, S::THREADS>(value_tile, values.anywhere(), head_dim, source(values));
        copy_commit();
        copy_wait<0>();
        __syncthreads();
        float scores[EXACT_ROWS];
        multiply_exact<D, STRIDE>(scores, query_tile + own * D, key_tile);
#pragma unroll
        for (int r = 0; r < EXACT_ROWS; r++) {
            if (score.capped()) scores[r] = score.bend(scores[r]);
            const u32 key = first_key + lane;
            const bool seen = key < key_end && visibility.sees(position(block.first_row + own + r), key);
            const float exponent = seen ? scores[r] * score.multiplier : -INFINITE;
            const float newest = fmaxf(maximum[r], warp_maximum(exponent));
            const float factor = newest == maximum[r] ? 1.f : exp2f(maximum[r] - newest);
            const float weight = newest == -INFINITE ? 0.f : exp2f(exponent - newest);
            maximum[r] = newest;
            total[r] = total[r] * factor + weight;
#pragma unroll
            for (int c = 0; c < S::COLUMNS; c++) sums[r][c] *= factor;
            weights[r * 32 + lane] = weight;
        }
        __syncwarp();
        apply_exact<S::COLUMNS, STRIDE>(sums, weights, value_tile);
    }
    copy_wait<0>();
#pragma unroll
    for (int r = 0; r < EXACT_ROWS; r++) {
        const float whole = warp_sum(total[r]), inverse = whole > 0.f ? 1.f / whole : 0.f;
        const u32 row = block.first_row + own + r;
        if (row >= block.row_end) continue;
        if (lane == 0) store_lse(a, block, row, whole > 0.f ? (maximum[r] + log2f(whole)) * LN_2 : -INFINITE);
        float *target = a.splits > 1
            ? partial_row(a, block, row)
            : row_of<float>(a.out, block.segment.first + block.token(row), block.head(row), head_dim);
#pragma unroll
        for (int c = 0; c < S::COLUMNS; c++) {
            if (lane + 32 * c < head_dim) target[lane + 32 * c] = sums[r][c] * inverse;
        }
    }
}

/// Writes a warp's rows, scaled; `row_pointer(row)` is null for rows that do not exist.
template <int COLUMNS, typename RowPointer>
__device__ __forceinline__ void store_exact(const float (&sums)[EXACT_ROWS][COLUMNS], float scale, u32 head_dim, RowPointer row_pointer) {
    const u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (int r = 0; r < EXACT_ROWS; r++) {
        float *target = row_pointer(r);
        if (target == nullptr) continue;
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            if (lane + 32 * c < head_dim) target[lane + 32 * c] = sums[r][c] * scale;
        }
    }
}

/// The weight of one pair, and what its gradient is multiplied with.
__device__ __forceinline__ float2 weigh_exact(const Scores &score, float value, float lse, bool seen) {
    float slope = 1.f;
    if (score.capped()) {
        value = score.bend(value);
        slope = score.slope(value);
    }
    const float weight = seen ? exp2f(value * score.multiplier - lse * LOG2_E) : 0.f;
    return make_float2(weight, weight * slope);
}

/// Grid: (H, tiles of M queries).
template <typename S> __device__ __forceinline__ void backward_queries_exact(const BackwardArguments &a) {
    constexpr int D = S::D, STRIDE = S::STRIDE;
    const u32 head_dim = a.common.head_dim, head = blockIdx.x, group = head / (a.common.heads / a.common.groups);
    const Segment segment = segment_of(a.common, a.common.tiles[2 * blockIdx.y]);
    const u32 first_row = a.common.tiles[2 * blockIdx.y + 1] * S::M, last_row = min(first_row + S::M, segment.count) - 1;
    const Visibility visibility(a.common, segment.count);
    const Scores score(a.common);

    float *query_tile = reinterpret_cast<float *>(dynamic_shared()), *d_out_tile = query_tile + S::M * D;
    float *key_tile = d_out_tile + S::M * D, *value_tile = key_tile + 32 * STRIDE;
    const u32 lane = threadIdx.x % WARP, own = threadIdx.x / WARP * EXACT_ROWS;
    float *weights = value_tile + 32 * STRIDE + own * 32;
    auto copy_rows = [&](float *to, const Rows &from) {
        copy_exact<D, S::M, D, S::THREADS>(to, static_cast<const float *>(from.data), head_dim, [&](u32 row) -> const float * {
            if (first_row + row > last_row) return nullptr;
            return row_of<const float>(from, segment.first + first_row + row, head, head_dim);
        });
    };
    copy_rows(query_tile, a.queries);
    copy_rows(d_out_tile, a.d_out);
    float sums[EXACT_ROWS][S::COLUMNS], lse[EXACT_ROWS], delta[EXACT_ROWS];
    clear(sums);
#pragma unroll
    for (int r = 0; r < EXACT_ROWS; r++) {
        const u64 at = static_cast<u64>(head) * a.common.rows + segment.first + min(first_row + own + r, last_row);
        lse[r] = a.lse[at];
        delta[r] = a.delta[at];
    }
    const u32 key_end = visibility.end_key(last_row);
    for (u32 first_key = visibility.first_key(first_row) / 32 * 32; first_key < key_end; first_key += 32) {
        __syncthreads();
        auto copy_keys = [&](float *to, const Rows &from) {
            const float *start = row_of<const float>(from, segment.first, group, head_dim);
            copy_exact<D, 32, STRIDE, S::THREADS>(to, start, head_dim, [&](u32 row) -> const float * {
                return first_key + row < segment.count ? start + (first_key + row) * from.stride : nullptr;
            });
        };
        copy_keys(key_tile, a.keys);
        copy_keys(value_tile, a.values);
        copy_commit();
        copy_wait<0>();
        __syncthreads();
        float scores[EXACT_ROWS], slopes[EXACT_ROWS];
        multiply_exact<D, STRIDE>(scores, query_tile + own * D, key_tile);
        multiply_exact<D, STRIDE>(slopes, d_out_tile + own * D, value_tile);
#pragma unroll
        for (int r = 0; r < EXACT_ROWS; r++) {
            const bool seen = visibility.sees(min(first_row + own + r, last_row), first_key + lane);
            weights[r * 32 + lane] = weigh_exact(score, scores[r], lse[r], seen).y * (slopes[r] - delta[r]);
        }
        __syncwarp();
        apply_exact<S::COLUMNS, STRIDE>(sums, weights, key_tile);
    }
    store_exact(sums, a.common.scale, head_dim, [&](u32 r) -> float * {
        if (first_row + own + r > last_row) return nullptr;
        return row_of<float>(a.d_queries, segment.first + first_row + own + r, head, head_dim);
    });
}

/// Grid: (G · splits, tiles of M keys).
template <typename S> __device__ __forceinline__ void backward_keys_exact(const BackwardArguments &a) {
    constexpr int D = S::D, STRIDE = S::STRIDE;
    const u32 head_dim = a.common.head_dim, group = blockIdx.x / a.splits, split = blockIdx.x % a.splits;
    const u32 share = a.common.heads / a.common.groups, per_split = (share + a.splits - 1) / a.splits;
    const u32 head_begin = group * share + min(split * per_split, share);
    const u32 head_end = group * share + min((split + 1) * per_split, share);
    const Segment segment = segment_of(a.common, a.common.tiles[2 * blockIdx.y]);
    const u32 first_key = a.common.tiles[2 * blockIdx.y + 1] * S::M, last_key = min(first_key + S::M, segment.count) - 1;
    const Visibility visibility(a.common, segment.count);
    const Scores score(a.common);

    float *key_tile = reinterpret_cast<float *>(dynamic_shared()), *value_tile = key_tile + S::M * D;
    float *query_tile = value_tile + S::M * D, *d_out_tile = query_tile + 32 * STRIDE;
    const u32 lane = threadIdx.x % WARP, own = threadIdx.x / WARP * EXACT_ROWS;
    float *weights = d_out_tile + 32 * STRIDE + own * 64, *gradients = weights + EXACT_ROWS * 32;
    auto copy_keys = [&](float *to, const Rows &from) {
        copy_exact<D, S::M, D, S::THREADS>(to, static_cast<const float *>(from.data), head_dim, [&](u32 row) -> const float * {
            if (first_key + row > last_key) return nullptr;
            return row_of<const float>(from, segment.first + first_key + row, group, head_dim);
        });
    };
    copy_keys(key_tile, a.keys);
    copy_keys(value_tile, a.values);
    copy_commit();
    float d_keys[EXACT_ROWS][S::COLUMNS], d_values[EXACT_ROWS][S::COLUMNS];
    clear(d_keys);
    clear(d_values);
    const u32 query_begin = a.common.causal ? first_key / 32 * 32 : 0;
    const u32 query_end = a.common.window != 0 ? min(segment.count, last_key + a.common.window) : segment.count;
    for (u32 head = head_begin; head < head_end; head++) {
        for (u32 first_query = query_begin; first_query < query_end; first_query += 32) {
            __syncthreads();
            auto copy_rows = [&](float *to, const Rows &from) {
                const float *start = row_of<const float>(from, segment.first, head, head_dim);
                copy_exact<D, 32, STRIDE, S::THREADS>(to, start, head_dim, [&](u32 row) -> const float * {
                    return first_query + row < segment.count ? start + (first_query + row) * from.stride : nullptr;
                });
            };
            copy_rows(query_tile, a.queries);
            copy_rows(d_out_tile, a.d_out);
            copy_commit();
            copy_wait<0>();
            const u32 query = first_query + lane;
            const u64 at = static_cast<u64>(head) * a.common.rows + segment.first + min(query, segment.count - 1);
            const float lse = a.lse[at], delta = a.delta[at];
            __syncthreads();
            float scores[EXACT_ROWS], slopes[EXACT_ROWS];
            multiply_exact<D, STRIDE>(scores, key_tile + own * D, query_tile);
            multiply_exact<D, STRIDE>(slopes, value_tile + own * D, d_out_tile);
#pragma unroll
            for (int r = 0; r < EXACT_ROWS; r++) {
                const bool seen = query < segment.count && visibility.sees(query, first_key + own + r);
                const float2 weight = weigh_exact(score, scores[r], lse, seen);
                weights[r * 32 + lane] = weight.x;
                gradients[r * 32 + lane] = weight.y * (slopes[r] - delta);
            }
            __syncwarp();
            apply_exact<S::COLUMNS, STRIDE>(d_values, weights, d_out_tile);
            apply_exact<S::COLUMNS, STRIDE>(d_keys, gradients, query_tile);
        }
    }
    copy_wait<0>();
    auto store = [&](const Rows &target, u32 which, float scale, const float (&sums)[EXACT_ROWS][S::COLUMNS]) {
        store_exact(sums, scale, head_dim, [&](u32 r) -> float * {
            const u32 key = first_key + own + r;
            if (key > last_key) return nullptr;
            if (a.splits == 1) return row_of<float>(target, segment.first + key, group, head_dim);
            const u64 part = (static_cast<u64>(split) * 2 + which) * a.common.rows + segment.first + key;
            return a.partial + (part * a.common.groups + group) * head_dim;
        });
    };
    store(a.d_keys, 0, a.common.scale, d_keys);
    store(a.d_values, 1, 1.f, d_values);
}

} // namespace attention
