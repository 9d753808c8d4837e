// New rows against the chunks of their sequences' caches, in parts that are joined afterwards.

// Chunks per launch: two buffers each, of the 31 that a kernel may have.
#define SLOTS 12

// The numbers that all launches of a call share, at the start of the table.
#define HEADER 8
FUNCTION Call call_of_table(const GLOBAL uint *table) {
    return call_of(table[0], table[1], table[2], table[3], 1, table[4], as_float(table[5]), as_float(table[6]));
}

// One block: some rows of a segment, and the chunks in `slot_begin..slot_end`. The chunk in the first of them starts at
// position `first_key`; the result is part `part` of the rows.
struct Item {
    uint first, count, block, length, slot_begin, slot_end, first_key, part;
};

FUNCTION Item item_of(const GLOBAL uint *words) {
    Item item;
    item.first = words[0];
    item.count = words[1];
    item.block = words[2];
    item.length = words[3];
    item.slot_begin = words[4];
    item.slot_end = words[5];
    item.first_key = words[6];
    item.part = words[7];
    return item;
}

template <typename T, int D, int N, bool KEPT>
FUNCTION void attend_chunks(const GLOBAL T *queries, const GLOBAL uint *table, GLOBAL float *partial, GLOBAL float *partial_lse,
                            const GLOBAL T *LOCAL (&keys)[SLOTS], const GLOBAL T *LOCAL (&values)[SLOTS], Item item, uint group,
                            SHARED_POINTER(T) tiles, uint thread_index) {
    Call call = call_of_table(table);
    uint chunk_length = table[7], fragments = call.head_dim / 8;
    Place place = place_of(thread_index);
    BlockRows block;
    block.share = call.heads / call.groups;
    block.first = item.block * BLOCK_ROWS;
    block.end = item.count * block.share;
    uint row = block.first + thread_index / 32 * 8 + place.row;
    bool exists = row < block.end;
    Index token = item.first + row / block.share;
    uint head = group * block.share + row % block.share;
    Index own = token * call.heads + head;
    Left<T, D, KEPT> left;
    fill(left, queries + own * call.head_dim, exists, place, fragments);
    Softmax<D> softmax;
    reset(softmax);
    Positions positions = positions_of(block, item.length - item.count, thread_index, place);
    Index stride = Index(call.groups) * call.head_dim;
    uint first_key = item.first_key;
    for (uint slot = item.slot_begin; slot < item.slot_end; slot++) {
        uint count = minimum(chunk_length, item.length - first_key);
        attend<T, D, N, KEPT>(softmax, left, call, positions, keys[slot] + group * call.head_dim, stride,
                              values[slot] + group * call.head_dim, stride, first_key, count, item.length, tiles, thread_index,
                              place);
        first_key += chunk_length;
    }
    float lse = finish(softmax);
    if (!exists) return;
    Index part = Index(item.part) * call.rows * call.heads;
    float factor = softmax.total > 0.0f ? 1.0f / softmax.total : 0.0f;
    store_row<float, D>(softmax.sums, partial + (part + own) * call.head_dim, factor, 0, fragments, place);
    if (place.column == 0) partial_lse[part + own] = lse;
}

// Grid: (G, items). Items are at `items_at` in the table, 8 words each. Writes part of `partial`, `[parts, T, H, D]`, and of
// `partial_lse`, `[parts, T, H]`, as powers of two.
#define KEY_CHUNKS(T)                                                                                                          \
    READ(T, key0, 5), READ(T, key1, 6), READ(T, key2, 7), READ(T, key3, 8), READ(T, key4, 9), READ(T, key5, 10),               \
        READ(T, key6, 11), READ(T, key7, 12), READ(T, key8, 13), READ(T, key9, 14), READ(T, key10, 15), READ(T, key11, 16)
#define VALUE_CHUNKS(T)                                                                                                        \
    READ(T, value0, 17), READ(T, value1, 18), READ(T, value2, 19), READ(T, value3, 20), READ(T, value4, 21),                   \
        READ(T, value5, 22), READ(T, value6, 23), READ(T, value7, 24), READ(T, value8, 25), READ(T, value9, 26),               \
        READ(T, value10, 27), READ(T, value11, 28)
#define CHUNK_LIST(name)                                                                                                       \
    {name##0, name##1, name##2, name##3, name##4, name##5, name##6, name##7, name##8, name##9, name##10, name##11}
#define DEFINE(suffix, T, D, N, KEPT, BOTH_KEPT, COLUMNS, WORDS)                                                               \
    KERNEL(attention_cached_##D##_##suffix, READ(T, queries, 0), READ(uint, table, 1), UPDATE(float, partial, 2),              \
           UPDATE(float, partial_lse, 3), VALUE(uint, items_at, 4), KEY_CHUNKS(T), VALUE_CHUNKS(T)) {                          \
        SHARED uint4 tiles[WORDS];                                                                                             \
        const GLOBAL T *keys[SLOTS] = CHUNK_LIST(key);                                                                         \
        const GLOBAL T *values[SLOTS] = CHUNK_LIST(value);                                                                     \
        attend_chunks<T, D, N, KEPT>(queries, table, partial, partial_lse, keys, values,                                       \
                                     item_of(table + items_at + 8 * GROUP_Y), GROUP_X, (SHARED_POINTER(T))tiles, THREAD);      \
    }
FOR_EACH_SHAPE(DEFINE)
#undef DEFINE

// Joins the parts of each row, whose number is at HEADER in the table. A thread per element.
#define DEFINE(suffix, T)                                                                                                      \
    KERNEL(attention_merge_##suffix, READ(float, partial, 0), READ(float, partial_lse, 1), READ(uint, table, 2),               \
           WRITE(T, out, 3)) {                                                                                                 \
        Call call = call_of_table(table);                                                                                      \
        Index element = Index(GROUP_X) * THREADS + THREAD, count = Index(call.rows) * call.heads;                              \
        Index own = element / call.head_dim;                                                                                   \
        if (own >= count) return;                                                                                              \
        uint parts = table[HEADER + own / call.heads];                                                                         \
        float highest = LOWEST;                                                                                                \
        for (uint part = 0; part < parts; part++) highest = maximum(highest, partial_lse[part * count + own]);                 \
        float total = 0.0f, sum = 0.0f;                                                                                        \
        for (uint part = 0; part < parts; part++) {                                                                            \
            float part_lse = partial_lse[part * count + own];                                                                  \
            float weight = part_lse < HALF_LOWEST ? 0.0f : exp2(part_lse - highest);                                           \
            total += weight;                                                                                                   \
            sum += weight * partial[part * count * call.head_dim + element];                                                   \
        }                                                                                                                      \
        store(sum / total, out + element);                                                                                     \
    }
DEFINE(f32, float)
DEFINE(f16, f16)
DEFINE(bf16, bf16)
#undef DEFINE
