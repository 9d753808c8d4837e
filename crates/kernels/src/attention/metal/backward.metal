// Gradients of packed sequences, with the weights computed again from the scores and the forward pass's lse.
//
// Two passes, so that nothing is added by several blocks and results repeat exactly: one walks over keys for a block of
// queries, one over queries for a block of keys. P: weights, dP: d_out · valuesᵀ, dS = P ∘ (dP − delta) ∘ slope.

// delta = Σ out · d_out, `[H, T]`. A warp per row and head.
#define DEFINE(suffix, T)                                                                                                      \
    KERNEL(attention_delta_##suffix, READ(T, out, 0), READ(T, d_out, 1), WRITE(float, delta, 2), VALUE(uint, rows, 3),         \
           VALUE(uint, heads, 4), VALUE(uint, head_dim, 5)) {                                                                  \
        Index own = Index(GROUP_X) * WARPS + THREAD / 32;                                                                      \
        if (own >= Index(rows) * heads) return;                                                                                \
        float sum = 0.0f;                                                                                                      \
        for (uint i = THREAD % 32; i < head_dim; i += 32) sum += load(out + own * head_dim + i) * load(d_out + own * head_dim + i);\
        sum = warp_sum(sum);                                                                                                   \
        if (THREAD % 32 == 0) delta[own % heads * rows + own / heads] = sum;                                                   \
    }
DEFINE(f32, float)
DEFINE(f16, f16)
DEFINE(bf16, bf16)
#undef DEFINE

// The weight of a pair, and it times the slope of the cap.
FUNCTION float2 weigh(Call call, bool seen, float product, float lse) {
    float exponent = exponent_of(call, product);
    float weight = seen ? exp2(exponent - lse * LOG2_E) : 0.0f;
    return float2(weight, weight * slope_of(call, exponent));
}

// What a tile of keys adds to the gradients of a warp's queries.
template <typename T, int D, int N, bool KEPT>
FUNCTION void add_queries_tile(LOCAL float2 (&sums)[D / 8], LOCAL const Left<T, D, KEPT> &queries,
                               LOCAL const Left<T, D, KEPT> &d_out, SHARED_POINTER(const T) keys, SHARED_POINTER(const T) values,
                               Call call, uint length, uint position, float lse, float delta, uint first_key, Place place) {
    uint fragments = call.head_dim / 8;
    float2 scores[N / 8], slopes[N / 8];
    multiply_rows<T, D, N, KEPT>(scores, queries, keys, fragments, place);
    multiply_rows<T, D, N, KEPT>(slopes, d_out, values, fragments, place);
#pragma unroll
    for (uint n = 0; n < N / 8; n++) {
#pragma unroll
        for (uint i = 0; i < 2; i++) {
            bool seen = sees(call, length, position, first_key + 8 * n + place.column + i);
            scores[n][i] = weigh(call, seen, scores[n][i], lse).y * (slopes[n][i] - delta);
        }
    }
    multiply_turned<T, D, N, D>(sums, scores, keys, 0, fragments, place);
}

template <typename T, int D, int N, bool KEPT>
FUNCTION void queries_block(Packed<T> packed, Segment segment, uint head, const GLOBAL T *d_out, const GLOBAL float *lse,
                            const GLOBAL float *delta, GLOBAL T *d_queries, SHARED_POINTER(T) tiles, uint thread_index) {
    Call call = packed.call;
    Place place = place_of(thread_index);
    uint group = head / (call.heads / call.groups), head_dim = call.head_dim;
    BlockRows block;
    block.first = segment.block * BLOCK_ROWS;
    block.end = segment.count;
    block.share = 1;
    Positions positions = positions_of(block, 0, thread_index, place);
    bool exists = block.first + thread_index / 32 * 8 + place.row < block.end;
    Index token = segment.first + positions.own, row = dense_row(call, token, call.heads, head);
    Left<T, D, KEPT> queries, own_d_out;
    fill(queries, query_row(packed, token, head), exists, place, head_dim / 8);
    fill(own_d_out, d_out + row, exists, place, head_dim / 8);
    float own_lse = lse[Index(head) * call.rows + token], own_delta = delta[Index(head) * call.rows + token];
    float2 sums[D / 8];
#pragma unroll
    for (uint d = 0; d < D / 8; d++) sums[d] = float2(0.0f, 0.0f);
    SHARED_POINTER(T) values = tiles + N * stride_of<T, D>();
    uint end = end_seen(call, segment.count, positions.block_highest);
    for (uint first = first_seen(call, positions.block_lowest) / N * N; first < end; first += N) {
        uint count = segment.count - first;
        BARRIER(); // the tiles before are done with
        copy_tile<T, D, N>(tiles, key_row(packed, segment.first + first, group), packed.key_stride, count, head_dim, thread_index);
        copy_tile<T, D, N>(values, value_row(packed, segment.first + first, group), packed.value_stride, count, head_dim,
                           thread_index);
        BARRIER();
        if (first >= end_seen(call, segment.count, positions.highest)) continue;
        add_queries_tile<T, D, N, KEPT>(sums, queries, own_d_out, tiles, values, call, segment.count, positions.own, own_lse,
                                        own_delta, first, place);
    }
    if (exists) store_row<T, D>(sums, d_queries + row, call.scale, 0, head_dim / 8, place);
}

// Grid: (H, tiles of queries).
#define DEFINE(suffix, T, D, N, KEPT, BOTH_KEPT, COLUMNS, WORDS)                                                               \
    KERNEL(attention_backward_queries_##D##_##suffix, PACKED_PARAMETERS(T), READ(T, d_out, 16), READ(float, lse, 17),          \
           READ(float, delta, 18), WRITE(T, d_queries, 19)) {                                                                  \
        SHARED uint4 tiles[WORDS];                                                                                             \
        queries_block<T, D, N, BOTH_KEPT>(PACKED(T), segment_of(table, tiles_at, GROUP_Y), GROUP_X, d_out, lse, delta,         \
                                           d_queries, (SHARED_POINTER(T))tiles, THREAD);                                       \
    }
FOR_EACH_SHAPE(DEFINE)
#undef DEFINE

// What a tile of queries adds to the gradients of a warp's keys and values: rows are keys, columns are queries.
template <typename T, int D, int N, bool KEPT, int COLUMNS>
FUNCTION void add_keys_tile(LOCAL float2 (&d_keys)[COLUMNS / 8], LOCAL float2 (&d_values)[COLUMNS / 8],
                            LOCAL const Left<T, D, KEPT> &keys, LOCAL const Left<T, D, KEPT> &values,
                            SHARED_POINTER(const T) queries, SHARED_POINTER(const T) d_out, const GLOBAL float *lse,
                            const GLOBAL float *delta, Call call, uint length, uint key, uint first_query, uint first_column,
                            Place place) {
    uint fragments = call.head_dim / 8;
    float2 weights[N / 8], slopes[N / 8];
    multiply_rows<T, D, N, KEPT>(weights, keys, queries, fragments, place);
    multiply_rows<T, D, N, KEPT>(slopes, values, d_out, fragments, place);
#pragma unroll
    for (uint n = 0; n < N / 8; n++) {
#pragma unroll
        for (uint i = 0; i < 2; i++) {
            uint query = first_query + 8 * n + place.column + i, at = minimum(query, length - 1);
            bool seen = query < length && sees(call, length, query, key);
            float2 weight = weigh(call, seen, weights[n][i], lse[at]);
            weights[n][i] = weight.x;
            slopes[n][i] = weight.y * (slopes[n][i] - delta[at]);
        }
    }
    multiply_turned<T, D, N, COLUMNS>(d_values, weights, d_out, first_column, fragments, place);
    multiply_turned<T, D, N, COLUMNS>(d_keys, slopes, queries, first_column, fragments, place);
}

template <typename T, int D, int N, bool KEPT, int COLUMNS>
FUNCTION void keys_block(Packed<T> packed, Segment segment, uint group, uint part, const GLOBAL T *d_out, const GLOBAL float *lse,
                         const GLOBAL float *delta, GLOBAL T *d_keys, GLOBAL T *d_values, SHARED_POINTER(T) tiles,
                         uint thread_index) {
    Call call = packed.call;
    Place place = place_of(thread_index);
    uint share = call.heads / call.groups, head_dim = call.head_dim, first_column = part * (COLUMNS / 8);
    uint lowest = segment.block * BLOCK_ROWS, warp_lowest = lowest + thread_index / 32 * 8, key = warp_lowest + place.row;
    uint last = minimum(lowest + BLOCK_ROWS, segment.count) - 1;
    bool exists = key < segment.count;
    Index token = segment.first + key;
    Left<T, D, KEPT> keys, values;
    fill(keys, key_row(packed, token, group), exists, place, head_dim / 8);
    fill(values, value_row(packed, token, group), exists, place, head_dim / 8);
    float2 key_sums[COLUMNS / 8], value_sums[COLUMNS / 8];
#pragma unroll
    for (uint d = 0; d < COLUMNS / 8; d++) key_sums[d] = value_sums[d] = float2(0.0f, 0.0f);
    SHARED_POINTER(T) d_out_tile = tiles + N * stride_of<T, D>();
    uint begin = call.causal != 0 ? lowest / N * N : 0;
    uint end = call.window != 0 ? minimum(segment.count, last + call.window) : segment.count;
    Index stride = Index(call.heads) * head_dim;
    for (uint head = group * share; head < (group + 1) * share; head++) {
        Index statistics = Index(head) * call.rows + segment.first;
        for (uint first = begin; first < end; first += N) {
            Index row = segment.first + first;
            uint count = segment.count - first;
            BARRIER(); // the tiles before are done with
            copy_tile<T, D, N>(tiles, query_row(packed, row, head), packed.query_stride, count, head_dim, thread_index);
            copy_tile<T, D, N>(d_out_tile, d_out + dense_row(call, row, call.heads, head), stride, count, head_dim, thread_index);
            BARRIER();
            if (call.causal != 0 && first + N <= warp_lowest) continue;
            add_keys_tile<T, D, N, KEPT, COLUMNS>(key_sums, value_sums, keys, values, tiles, d_out_tile, lse + statistics,
                                                  delta + statistics, call, segment.count, key, first, first_column, place);
        }
    }
    if (!exists) return;
    Index own = dense_row(call, token, call.groups, group);
    store_row<T, COLUMNS>(key_sums, d_keys + own, call.scale, first_column, head_dim / 8, place);
    store_row<T, COLUMNS>(value_sums, d_values + own, 1.0f, first_column, head_dim / 8, place);
}

// Grid: (G, tiles of keys, D / COLUMNS): each block adds up over the query heads that share its key/value head.
#define DEFINE(suffix, T, D, N, KEPT, BOTH_KEPT, COLUMNS, WORDS)                                                               \
    KERNEL(attention_backward_keys_##D##_##suffix, PACKED_PARAMETERS(T), READ(T, d_out, 16), READ(float, lse, 17),             \
           READ(float, delta, 18), WRITE(T, d_keys, 19), WRITE(T, d_values, 20)) {                                             \
        SHARED uint4 tiles[WORDS];                                                                                             \
        keys_block<T, D, N, BOTH_KEPT, COLUMNS>(PACKED(T), segment_of(table, tiles_at, GROUP_Y), GROUP_X, GROUP_Z, d_out,      \
                                                 lse, delta, d_keys, d_values, (SHARED_POINTER(T))tiles, THREAD);              \
    }
FOR_EACH_SHAPE(DEFINE)
#undef DEFINE
