// Softmax over tiles of keys, with running maxima and sums; the forward pass of packed sequences.

// A warp's rows, which share a tile's keys: row `first + i` of the block is head `i % share` of token `i / share`.
struct BlockRows {
    uint first, end, share;
};

// The running softmax of the lane's row.
template <int D> struct Softmax {
    float2 sums[D / 8];
    // Of this lane's columns only, until the end.
    float total;
    float maximum;
};

template <typename T, int D, int N, bool KEPT>
FUNCTION void attend_tile(LOCAL Softmax<D> &softmax, LOCAL const Left<T, D, KEPT> &queries, SHARED_POINTER(const T) keys,
                          SHARED_POINTER(const T) values, Call call, uint length, uint position, bool all_seen, uint first_key,
                          Place place) {
    uint fragments = call.head_dim / 8;
    float2 scores[N / 8];
    multiply_rows<T, D, N, KEPT>(scores, queries, keys, fragments, place);
    float highest = LOWEST;
#pragma unroll
    for (uint n = 0; n < N / 8; n++) {
#pragma unroll
        for (uint i = 0; i < 2; i++) {
            bool seen = all_seen || sees(call, length, position, first_key + 8 * n + place.column + i);
            scores[n][i] = seen ? exponent_of(call, scores[n][i]) : LOWEST;
            highest = maximum(highest, scores[n][i]);
        }
    }
    highest = maximum(softmax.maximum, matrix_row_maximum(highest));
    float factor = exp2(softmax.maximum - highest);
    softmax.maximum = highest;
    softmax.total *= factor;
#pragma unroll
    for (uint n = 0; n < N / 8; n++) {
#pragma unroll
        for (uint i = 0; i < 2; i++) {
            float weight = scores[n][i] < HALF_LOWEST ? 0.0f : exp2(scores[n][i] - highest);
            scores[n][i] = weight;
            softmax.total += weight;
        }
    }
#pragma unroll
    for (uint d = 0; d < D / 8; d++) softmax.sums[d] *= factor;
    multiply_turned<T, D, N, D>(softmax.sums, scores, values, 0, fragments, place);
}

// What a block knows of its rows: positions of the first and the last, of each warp's, and of the lane's own.
struct Positions {
    uint block_lowest, block_highest, lowest, highest, own;
};

FUNCTION uint position_of(BlockRows rows, uint row, uint first_position) {
    return first_position + minimum(rows.first + row, rows.end - 1) / rows.share;
}

FUNCTION Positions positions_of(BlockRows rows, uint first_position, uint thread_index, Place place) {
    uint own = thread_index / 32 * 8;
    Positions positions;
    positions.block_lowest = position_of(rows, 0, first_position);
    positions.block_highest = position_of(rows, BLOCK_ROWS - 1, first_position);
    positions.lowest = position_of(rows, own, first_position);
    positions.highest = position_of(rows, own + 7, first_position);
    positions.own = position_of(rows, own + place.row, first_position);
    return positions;
}

// Attends to `count` keys that lie together, the first of them at position `first_key`.
template <typename T, int D, int N, bool KEPT>
FUNCTION void attend(LOCAL Softmax<D> &softmax, LOCAL const Left<T, D, KEPT> &queries, Call call, Positions positions,
                     const GLOBAL T *keys, Index key_stride, const GLOBAL T *values, Index value_stride, uint first_key,
                     uint count, uint length, SHARED_POINTER(T) tiles, uint thread_index, Place place) {
    uint begin = first_seen(call, positions.block_lowest), end = end_seen(call, length, positions.block_highest);
    SHARED_POINTER(T) value_tile = tiles + N * stride_of<T, D>();
    for (uint at = 0; at < count; at += N) {
        uint first = first_key + at;
        if (first + N <= begin || first >= end) continue;
        BARRIER(); // the tiles before are done with
        copy_tile<T, D, N>(tiles, keys + at * key_stride, key_stride, count - at, call.head_dim, thread_index);
        copy_tile<T, D, N>(value_tile, values + at * value_stride, value_stride, count - at, call.head_dim, thread_index);
        BARRIER();
        if (first >= end_seen(call, length, positions.highest)) continue;
        uint known = minimum(first_key + count, length);
        bool all_seen = all_see_all(call, known, positions.lowest, positions.highest, first, first + N - 1);
        attend_tile<T, D, N, KEPT>(softmax, queries, tiles, value_tile, call, known, positions.own, all_seen, first, place);
    }
}

template <int D> FUNCTION void reset(LOCAL Softmax<D> &softmax) {
#pragma unroll
    for (uint d = 0; d < D / 8; d++) softmax.sums[d] = float2(0.0f, 0.0f);
    softmax.total = 0.0f;
    softmax.maximum = LOWEST;
}

// Sums up the lane's row; returns its lse as a power of two, LOWEST if it saw no key.
template <int D> FUNCTION float finish(LOCAL Softmax<D> &softmax) {
    softmax.total = matrix_row_sum(softmax.total);
    return softmax.total > 0.0f ? softmax.maximum + log2(softmax.total) : LOWEST;
}

template <typename T, int D, int N, bool KEPT>
FUNCTION void forward_block(Packed<T> packed, Segment segment, uint head, GLOBAL T *out, GLOBAL float *lse,
                            SHARED_POINTER(T) tiles, uint thread_index) {
    Call call = packed.call;
    Place place = place_of(thread_index);
    uint group = head / (call.heads / call.groups);
    BlockRows block;
    block.first = segment.block * BLOCK_ROWS;
    block.end = segment.count;
    block.share = 1;
    Positions positions = positions_of(block, 0, thread_index, place);
    bool exists = block.first + thread_index / 32 * 8 + place.row < block.end;
    Index token = segment.first + positions.own;
    Left<T, D, KEPT> queries;
    fill(queries, query_row(packed, token, head), exists, place, call.head_dim / 8);
    Softmax<D> softmax;
    reset(softmax);
    attend<T, D, N, KEPT>(softmax, queries, call, positions, key_row(packed, segment.first, group), packed.key_stride,
                          value_row(packed, segment.first, group), packed.value_stride, 0, segment.count, segment.count, tiles,
                          thread_index, place);
    float own_lse = finish(softmax);
    if (!exists) return;
    GLOBAL T *to = out + dense_row(call, token, call.heads, head);
    store_row<T, D>(softmax.sums, to, 1.0f / softmax.total, 0, call.head_dim / 8, place);
    if (place.column == 0) lse[Index(head) * call.rows + token] = own_lse * LN_2;
}

// Grid: (H, tiles).
#define DEFINE(suffix, T, D, N, KEPT, BOTH_KEPT, COLUMNS, WORDS)                                                               \
    KERNEL(attention_forward_##D##_##suffix, PACKED_PARAMETERS(T), WRITE(T, out, 16), WRITE(float, lse, 17)) {                 \
        SHARED uint4 tiles[WORDS];                                                                                             \
        forward_block<T, D, N, KEPT>(PACKED(T), segment_of(table, tiles_at, GROUP_Y), GROUP_X, out, lse,                       \
                                     (SHARED_POINTER(T))tiles, THREAD);                                                        \
    }
FOR_EACH_SHAPE(DEFINE)
#undef DEFINE
