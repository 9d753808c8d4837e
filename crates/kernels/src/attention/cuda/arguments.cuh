// What the host passes to the kernels; the structs are mirrored field by field on the host.
//
// T: rows of the call, H: query heads, G: key/value heads, D: head size (a multiple of 8, at most 256),
// N: positions per chunk. All lengths and strides count elements; every row starts at a multiple of 16 bytes.
#pragma once

#include "warp.cuh"

namespace attention {

/// `[T, heads, D]` as a view: head h of row r starts at `data + r · stride + h · D`.
struct Rows {
    void *data;
    i64 stride;
};

/// What is the same for all kernels. A query at position p sees key k of its sequence when `k < length`, and, if
/// `causal`, `k <= p`, and, if `window` is not 0, `k + window > p` (a window needs `causal`).
struct Common {
    /// `[segments + 1]`: the rows of segment s are `starts[s]..starts[s + 1]`.
    const u32 *starts;
    /// Pairs (segment, block of rows in it), those with most work first; one per `gridDim.y`.
    const u32 *tiles;
    u32 rows, heads, groups, head_dim;
    u32 causal, window;
    float scale, soft_cap;
};

struct ForwardArguments {
    Common common;
    Rows queries;
    /// Keys and values of the rows themselves, for kernels without a cache.
    Rows keys, values;
    /// The cache: addresses of chunks `[N, G, D]`; those of segment s begin at `chunk_starts[s]`. `lengths[s]` positions
    /// are filled, and the segment's rows are the last of them.
    const u64 *key_chunks, *value_chunks;
    const u32 *chunk_starts, *lengths;
    /// N = 2 ^ chunk_shift.
    u32 chunk_shift;
    /// With a cache: how many query heads of one key/value head share a block, as rows `token · pack + head`: 1, or
    /// H / G. Without a cache: 1.
    u32 pack;
    /// Parts of the keys, `gridDim.z`. With more than one, `partial` and `partial_lse` are written instead of `out` and
    /// `lse`, and `merge` follows.
    u32 splits;
    Rows out;
    /// `[H, T]`, natural logarithm of the sum of exponentials; may be null.
    float *lse;
    /// `[splits, T, H, D]` and `[splits, H, T]`
    float *partial, *partial_lse;
};

struct BackwardArguments {
    Common common;
    Rows queries, keys, values, out, d_out;
    Rows d_queries, d_keys, d_values;
    /// `[H, T]`: of the forward pass, and Σ out · d_out per row (written by `delta`).
    const float *lse;
    float *delta;
    /// Parts of the query heads of a key/value head. With more than one, `keys` writes `partial` instead of `d_keys` and
    /// `d_values`, and `reduce` follows.
    u32 splits;
    /// `[splits, 2, T, G, D]`: keys, then values.
    float *partial;
};

/// The rows of one segment, and where they stand among its keys.
struct Segment {
    u32 first, count, length;

    /// The position of row `row` of the segment.
    __device__ __forceinline__ u32 position(u32 row) const { return length - count + row; }
};

__device__ __forceinline__ Segment segment_of(const Common &common, u32 index) {
    const u32 first = common.starts[index];
    const u32 count = common.starts[index + 1] - first;
    return Segment{first, count, count};
}

template <typename T>
__device__ __forceinline__ T *row_of(const Rows &rows, u32 row, u32 head, u32 head_dim) {
    return static_cast<T *>(rows.data) + static_cast<i64>(row) * rows.stride + static_cast<i64>(head) * head_dim;
}

/// Where the keys, or values, of one head of one segment lie.
template <typename T, bool CHUNKED> struct Positions;

template <typename T> struct Positions<T, false> {
    const T *first;
    i64 stride;

    __device__ __forceinline__ const T *operator()(u32 position) const { return first + position * stride; }
    __device__ __forceinline__ const T *anywhere() const { return first; }
};

template <typename T> struct Positions<T, true> {
    const u64 *chunks;
    u32 shift, row_length, head_offset;

    __device__ __forceinline__ const T *operator()(u32 position) const {
        const u32 inside = position & ((1u << shift) - 1);
        return reinterpret_cast<const T *>(chunks[position >> shift]) + static_cast<u64>(inside) * row_length + head_offset;
    }
    __device__ __forceinline__ const T *anywhere() const { return reinterpret_cast<const T *>(chunks[0]); }
};

template <typename T, bool CHUNKED>
__device__ __forceinline__ Positions<T, CHUNKED> positions_of(
    const ForwardArguments &a, const Rows &rows, const u64 *chunks, const Segment &segment, u32 index, u32 group
) {
    const u32 head_dim = a.common.head_dim;
    if constexpr (CHUNKED) {
        return {chunks + a.chunk_starts[index], a.chunk_shift, a.common.groups * head_dim, group * head_dim};
    } else {
        return {row_of<const T>(rows, segment.first, group, head_dim), rows.stride};
    }
}

/// Turns a raw score into the exponent, in powers of two, of its weight: `multiplier · capped(score)`.
struct Scores {
    float multiplier, inverse_cap, cap;

    __device__ __forceinline__ explicit Scores(const Common &common) {
        const bool capped = common.soft_cap > 0.f;
        multiplier = capped ? LOG2_E : common.scale * LOG2_E;
        inverse_cap = capped ? common.scale / common.soft_cap : 0.f;
        cap = common.soft_cap;
    }

    __device__ __forceinline__ bool capped() const { return inverse_cap != 0.f; }
    __device__ __forceinline__ float bend(float score) const { return cap * hyperbolic_tangent(score * inverse_cap); }
    /// `bend`, but a masked score stays −∞.
    __device__ __forceinline__ float bend_seen(float score) const { return score == -INFINITE ? score : bend(score); }
    /// The slope of `bend` by `score · scale`, from its result.
    __device__ __forceinline__ float slope(float bent) const {
        const float t = __fdividef(bent, cap);
        return 1.f - t * t;
    }
};

/// Which keys a query sees.
struct Visibility {
    u32 length, causal, window;

    __device__ __forceinline__ Visibility(const Common &common, u32 length)
        : length(length), causal(common.causal), window(common.window) {}

    __device__ __forceinline__ bool sees(u32 position, u32 key) const {
        return key < length && (!causal || key <= position) && (window == 0 || key + window > position);
    }
    /// Whether every query of `lowest..=highest` sees every key of `first..first + count`.
    __device__ __forceinline__ bool sees_all(u32 lowest, u32 highest, u32 first, u32 count) const {
        return sees(lowest, first + count - 1) && (window == 0 || first + window > highest);
    }
    /// The keys that any query of `lowest..=highest` sees.
    __device__ __forceinline__ u32 first_key(u32 lowest) const {
        return window != 0 && lowest + 1 > window ? lowest + 1 - window : 0;
    }
    __device__ __forceinline__ u32 end_key(u32 highest) const {
        return causal ? min(length, highest + 1) : length;
    }
};

} // namespace attention
