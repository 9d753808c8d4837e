// Attention for Apple GPUs. The scores of a block of rows and a tile of positions live in registers, as matrices of 8×8;
// keys and values pass through threadgroup memory once per block.
//
// T: rows of the call, H: query heads, G: key/value heads, D: the head size rounded up to 64, 128 or 256, N: positions of a
// tile. A block has 4 warps of 8 rows each. All products and sums are in float: memory of 16 bits is widened when a matrix is
// read, which also serves the chips that have no arithmetic for bf16.
//
// Infinity is avoided throughout: Metal's fast mathematics may assume that there is none.

#define WARPS 4
#define BLOCK_ROWS 32
#define BLOCK_THREADS 128
#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f
// A score that is not seen, and the maximum of none; anything below HALF_LOWEST is one of these.
#define LOWEST -1e30f
#define HALF_LOWEST -5e29f

// The numbers of a call.
struct Call {
    uint rows, heads, groups, head_dim, causal, window;
    float scale, soft_cap;
};

FUNCTION Call call_of(uint rows, uint heads, uint groups, uint head_dim, uint causal, uint window, float scale,
                      float soft_cap) {
    Call call;
    call.rows = rows;
    call.heads = heads;
    call.groups = groups;
    call.head_dim = head_dim;
    call.causal = causal;
    call.window = window;
    call.scale = scale;
    call.soft_cap = soft_cap;
    return call;
}

// ---------------------------------------------------------------------------------------------- what a query sees

FUNCTION bool sees(Call call, uint length, uint position, uint key) {
    return key < length && (call.causal == 0 || key <= position) && (call.window == 0 || key + call.window > position);
}

// Whether all queries of lowest..=highest see all keys of first..=last.
FUNCTION bool all_see_all(Call call, uint length, uint lowest, uint highest, uint first, uint last) {
    return sees(call, length, lowest, last) && (call.window == 0 || first + call.window > highest);
}

FUNCTION uint first_seen(Call call, uint lowest) {
    return call.window != 0 && lowest + 1 > call.window ? lowest + 1 - call.window : 0;
}

FUNCTION uint end_seen(Call call, uint length, uint highest) {
    return call.causal != 0 ? minimum(length, highest + 1) : length;
}

// A product of a query and a key as the power of two that weighs it.
FUNCTION float exponent_of(Call call, float product) {
    if (call.soft_cap == 0.0f) return product * (call.scale * LOG2_E);
    return call.soft_cap * LOG2_E * hyperbolic_tangent(product * (call.scale / call.soft_cap));
}

// The slope of the cap where the exponent is this.
FUNCTION float slope_of(Call call, float exponent) {
    if (call.soft_cap == 0.0f) return 1.0f;
    float bent = exponent / (call.soft_cap * LOG2_E);
    return 1.0f - bent * bent;
}

// ------------------------------------------------------------------------------------------------- packed sequences

// What the kernels for packed sequences are given. Rows of queries, keys and values lie `stride` elements apart; those of
// other tensors are dense. The table has `starts` (the rows of segment s are starts[s]..starts[s + 1]), and from `tiles_at` on
// pairs (segment, block of rows in it).
template <typename T> struct Packed {
    Call call;
    const GLOBAL uint *table;
    const GLOBAL T *queries, *keys, *values;
    Index query_stride, key_stride, value_stride;
};

#define PACKED_PARAMETERS(T)                                                                                                   \
    READ(uint, table, 0), READ(T, queries, 1), READ(T, keys, 2), READ(T, values, 3), VALUE(uint, tiles_at, 4),                 \
        VALUE(uint, query_stride, 5), VALUE(uint, key_stride, 6), VALUE(uint, value_stride, 7), VALUE(uint, rows, 8),          \
        VALUE(uint, heads, 9), VALUE(uint, groups, 10), VALUE(uint, head_dim, 11), VALUE(uint, causal, 12),                    \
        VALUE(uint, window, 13), VALUE(float, scale, 14), VALUE(float, soft_cap, 15)
#define PACKED(T)                                                                                                              \
    packed_of<T>(call_of(rows, heads, groups, head_dim, causal, window, scale, soft_cap), table, queries, keys, values,        \
                 query_stride, key_stride, value_stride)

template <typename T>
FUNCTION Packed<T> packed_of(Call call, const GLOBAL uint *table, const GLOBAL T *queries, const GLOBAL T *keys,
                             const GLOBAL T *values, Index query_stride, Index key_stride, Index value_stride) {
    Packed<T> packed;
    packed.call = call;
    packed.table = table;
    packed.queries = queries;
    packed.keys = keys;
    packed.values = values;
    packed.query_stride = query_stride;
    packed.key_stride = key_stride;
    packed.value_stride = value_stride;
    return packed;
}

// One head of one row.
template <typename T> FUNCTION const GLOBAL T *query_row(Packed<T> packed, Index token, uint head) {
    return packed.queries + token * packed.query_stride + head * packed.call.head_dim;
}
template <typename T> FUNCTION const GLOBAL T *key_row(Packed<T> packed, Index token, uint group) {
    return packed.keys + token * packed.key_stride + group * packed.call.head_dim;
}
template <typename T> FUNCTION const GLOBAL T *value_row(Packed<T> packed, Index token, uint group) {
    return packed.values + token * packed.value_stride + group * packed.call.head_dim;
}
FUNCTION Index dense_row(Call call, Index token, uint heads, uint head) { return (token * heads + head) * call.head_dim; }

// The segment and the block of rows of one entry of the tile list.
struct Segment {
    uint first, count, block;
};

FUNCTION Segment segment_of(const GLOBAL uint *table, uint tiles_at, uint tile) {
    uint index = table[tiles_at + 2 * tile];
    Segment segment;
    segment.first = table[index];
    segment.count = table[index + 1] - table[index];
    segment.block = table[tiles_at + 2 * tile + 1];
    return segment;
}

// Type, D, N, whether rows are kept in registers: queries alone, and two of them; columns of a block of keys' gradients;
// pieces of 16 bytes in two tiles.
#define FOR_EACH_SHAPE(DEFINE)                                                                                                 \
    DEFINE(f32, float, 64, 32, true, true, 64, 1088)                                                                           \
    DEFINE(f32, float, 128, 16, true, false, 128, 1056)                                                                        \
    DEFINE(f32, float, 256, 8, false, false, 128, 1040)                                                                        \
    DEFINE(f16, f16, 64, 32, true, true, 64, 576)                                                                              \
    DEFINE(f16, f16, 128, 32, true, false, 128, 1088)                                                                          \
    DEFINE(f16, f16, 256, 16, false, false, 128, 1056)                                                                         \
    DEFINE(bf16, bf16, 64, 32, true, true, 64, 576)                                                                            \
    DEFINE(bf16, bf16, 128, 32, true, false, 128, 1088)                                                                        \
    DEFINE(bf16, bf16, 256, 16, false, false, 128, 1056)
