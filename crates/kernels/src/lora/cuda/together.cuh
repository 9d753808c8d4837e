// Adapters of up to three products of one input, over many rows, with tensor cores.
//
//   pull:    h_i = x A_iᵀ                                       x is read once for all
//   up:      y_i += scale_i h_i B_iᵀ                            each y is read and written once
//   through: g_i = dy_i B_i, dx += Σ scale_i g_i A_i            each dy is read once, dx read and written once
//   outers:  a part of g_iᵀ x and of h_iᵀ dy_i                  x and each dy are read once
//
// M: rows, K: inputs, N: a product's outputs, r: an adapter's rank. A block is eight ranks, a tile 16 rows, a strip 64
// columns, half of it a span.
//
// All of them wait for memory only, so what counts is how much of it is under way. A warp works on tiles of one strip; each
// lane copies 16 bytes of each of its rows to shared memory, some tiles ahead, and reads them there itself: no barrier is in
// the way. Which of a product's 16 inner indices, or of a tile's columns, these are does not matter where both factors agree;
// so they are the ones that lie together in memory.
#pragma once
#include <cstring>

#include "../../attention/cuda/warp.cuh"

namespace together {

using namespace attention;

constexpr u32 MEMBERS = 3, RANKS = 8, MEMBER_BLOCKS = 2;
constexpr u32 WARPS = 8, THREADS = WARPS * WARP;
constexpr u32 TILE = 16, STRIP = 64, SPAN = 32;
/// A tile of a strip is four pieces of 16 bytes for each lane.
constexpr u32 PIECES = 4, PIECE_BYTES = WARP * 16;
/// Tiles that a warp has under way.
constexpr u32 DEPTH = 4;

/// An adapter; one that is not counted is not looked at.
struct Member {
    /// A `[r, K]`, B `[N, r]`
    u64 a, b;
    /// y or dy `[M, N]`
    u64 y;
    /// `[M, 8 · blocks]`, zeros behind the rank
    u64 h, g;
    /// What `outers` leaves for each matrix: `[parts, r, K]` and `[parts, r, N]` in f32.
    u64 da, db;
    u32 rank, outputs;
    float scale;
    u32 unused;

    __device__ __forceinline__ u32 blocks() const { return (rank + RANKS - 1) / RANKS; }
    /// Of a row of h and g.
    __device__ __forceinline__ u32 width() const { return blocks() * RANKS; }
};

/// The host fills the same struct.
struct Arguments {
    /// x `[M, K]`; dx `[M, K]` or 0
    u64 x, dx;
    Member members[MEMBERS];
    u32 rows, inputs, count;
    /// Rows of a part of `outers`, whole tiles.
    u32 part_rows;
};

/// Before a kernel reads anything.
__device__ __forceinline__ void begin() {}

#ifdef CUDA_EMULATION

inline void copy_line(u32 to, const void *from, bool valid) { copy_16(to, from, valid); }
inline void copy_last(u32 to, const void *from, bool valid) { copy_16(to, from, valid); }
inline void store_last(void *to, uint4 bits) { *(uint4 *)to = bits; }
inline uint4 load_kept(const void *from) { return *(const uint4 *)from; }

#else

/// As copy_16; the rest of the cache line is wanted soon.
__device__ __forceinline__ void copy_line(u32 to, const void *from, bool valid) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                 :: "r"(to), "l"(__cvta_generic_to_global(from)), "r"(valid ? 16 : 0) : "memory");
}
/// For what nobody reads soon: the second-level cache is to keep other things.
__device__ __forceinline__ u64 evict_first() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
/// As copy_line, for what is read here for the last time.
__device__ __forceinline__ void copy_last(u32 to, const void *from, bool valid) {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;"
                 :: "r"(to), "l"(__cvta_generic_to_global(from)), "r"(valid ? 16 : 0), "l"(evict_first()) : "memory");
}
__device__ __forceinline__ void store_last(void *to, uint4 bits) {
    asm volatile("st.global.L2::cache_hint.v4.u32 [%0], {%1, %2, %3, %4}, %5;"
                 :: "l"(__cvta_generic_to_global(to)), "r"(bits.x), "r"(bits.y), "r"(bits.z), "r"(bits.w), "l"(evict_first()) : "memory");
}
/// 16 bytes that others read as well.
__device__ __forceinline__ uint4 load_kept(const void *from) {
    uint4 bits;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w) : "l"(from));
    return bits;
}

#endif

template <typename T> __device__ __forceinline__ T *at(u64 address, u64 index) {
    return reinterpret_cast<T *>(address) + index;
}

__device__ __forceinline__ u32 quotient_up(u32 value, u32 by) { return (value + by - 1) / by; }

/// The lower, or the upper, halves of two registers.
__device__ __forceinline__ u32 lower(u32 first, u32 second) { return (first & 0xffff) | second << 16; }
__device__ __forceinline__ u32 upper(u32 first, u32 second) { return first >> 16 | (second & 0xffff0000); }

template <typename T> __device__ __forceinline__ float2 unpack(u32 bits) {
    Pair<T> pair;
    memcpy(&pair, &bits, sizeof bits);
    return make_float2(widen(pair.low), widen(pair.high));
}

/// Two neighbouring ranks of a row of `rank`, zeros behind its end.
template <typename T> __device__ __forceinline__ u32 two_ranks(const T *row, u32 first, u32 rank) {
    if (rank % 2 == 0) return first < rank ? *reinterpret_cast<const u32 *>(row + first) : 0;
    const unsigned short *bits = reinterpret_cast<const unsigned short *>(row);
    const u32 low = first < rank ? bits[first] : 0, high = first + 1 < rank ? bits[first + 1] : 0;
    return low | high << 16;
}

/// A block of ranks of such a row.
template <typename T> __device__ __forceinline__ uint4 eight_ranks(const T *row, u32 first, u32 rank) {
    if (rank % RANKS == 0 && first < rank) return load_kept(row + first);
    return make_uint4(two_ranks(row, first, rank), two_ranks(row, first + 2, rank), two_ranks(row, first + 4, rank),
                      two_ranks(row, first + 6, rank));
}

/// Whose a block of ranks is, where all members' blocks are counted; nobody's if the member is `count`.
struct Block {
    u32 member, first;
};

__device__ __forceinline__ Block block_of(const Arguments &g, u32 block) {
    u32 member = 0;
    for (; member < g.count && block >= g.members[member].blocks(); member++) block -= g.members[member].blocks();
    return {member, block * RANKS};
}

/// A lane's pieces of a tile, for products along the columns: rows `lane / 4` and 8 further, 8 columns of each span.
template <typename T, bool LAST = false>
__device__ __forceinline__ void copy_tile(u32 to, const T *data, u32 width, u32 rows, u32 row, u32 column) {
#pragma unroll
    for (u32 piece = 0; piece < PIECES; piece++) {
        const u32 m = row + piece % 2 * 8, k = column + piece / 2 * SPAN;
        const bool valid = m < rows && k < width;
        const T *from = data + (valid ? (u64)m * width + k : 0);
        if constexpr (LAST) copy_last(to + piece * PIECE_BYTES, from, valid);
        else copy_line(to + piece * PIECE_BYTES, from, valid);
    }
}

/// In shared memory: the warps' tiles, and factors.
constexpr u32 STAGE_BYTES = PIECES * PIECE_BYTES, RING_BYTES = DEPTH * STAGE_BYTES;
constexpr u32 FACTORS_AT = WARPS * RING_BYTES, FACTOR_BYTES = 32 << 10, SHARED_BYTES = FACTORS_AT + FACTOR_BYTES;
/// Warps that share the strips of a tile, and the rows of a thread block of such.
constexpr u32 SPLIT = 2, BLOCK_ROWS = WARPS / SPLIT * TILE;
/// Columns whose factors lie in shared memory at a time, if those of a span have so many bytes.
constexpr __host__ __device__ u32 chunk(u32 bytes) { return FACTOR_BYTES / bytes * SPAN / (SPLIT * STRIP) * (SPLIT * STRIP); }

/// Where a warp of these thread blocks works.
struct Place {
    u32 lane, warp, split, row;
    /// Its lane's part of the warp's tiles, as an address and to be read.
    u32 ring;
    const uint4 *pieces;

    __device__ __forceinline__ Place() {
        lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, split = warp % SPLIT;
        row = (blockIdx.x * (WARPS / SPLIT) + warp / SPLIT) * TILE + lane / 4;
        ring = shared_address(dynamic_shared()) + warp * RING_BYTES + lane * 16;
        pieces = reinterpret_cast<const uint4 *>(dynamic_shared() + warp * RING_BYTES) + lane;
    }
    __device__ __forceinline__ u32 stage(u32 step) const { return ring + step % DEPTH * STAGE_BYTES; }
    __device__ __forceinline__ const uint4 *tile(u32 step) const { return pieces + step % DEPTH * (STAGE_BYTES / 16); }
    /// The first column of its piece of a strip.
    __device__ __forceinline__ u32 column(u32 strip) const { return strip * STRIP + lane % 4 * 8; }
};

/// Calls `store(i, load(i))` for each i below `count` that is this warp's. Several loads come before what waits for them, as the
/// compiler cannot know that no store changes what they read.
template <u32 BATCH, typename L, typename S>
__device__ __forceinline__ void fill(u32 count, const Place &place, L load, S store) {
    for (u32 first = place.warp; first < count; first += BATCH * WARPS) {
        decltype(load(0u)) loaded[BATCH];
#pragma unroll
        for (u32 i = 0; i < BATCH; i++)
            if (first + i * WARPS < count) loaded[i] = load(first + i * WARPS);
#pragma unroll
        for (u32 i = 0; i < BATCH; i++)
            if (first + i * WARPS < count) store(first + i * WARPS, loaded[i]);
    }
}

/// A of all members for the columns `first..first + columns`: the registers of each lane for each span and block.
template <typename T, u32 BLOCKS>
__device__ __forceinline__ void stage_along(const Arguments &g, const Place &place, u32 first, u32 columns, uint4 *factors) {
    const auto load = [&](u32 i) {
        const Block block = block_of(g, i % BLOCKS);
        const u32 rank = block.first + place.lane / 4, k = first + i / BLOCKS * SPAN + place.lane % 4 * 8;
        const bool is_there = block.member < g.count && rank < g.members[block.member].rank && k < g.inputs;
        return is_there ? load_kept(at<const T>(g.members[block.member].a, (u64)rank * g.inputs + k)) : make_uint4(0, 0, 0, 0);
    };
    fill<8>(quotient_up(columns, STRIP) * 2 * BLOCKS, place, load, [&](u32 i, uint4 bits) { factors[i * WARP + place.lane] = bits; });
}

/// B of a member, likewise; rows of eight ranks in the order in which four matrices are loaded and turned.
template <typename T, u32 BLOCKS>
__device__ __forceinline__ void stage_turned(const Member &member, const Place &place, u32 first, u32 columns, uint4 *factors) {
    const u32 matrix = place.lane / 8, line = place.lane % 8;
    const auto load = [&](u32 i) {
        const u32 n = first + i / BLOCKS * SPAN + line / 2 * 8 + 2 * matrix + line % 2;
        if (n >= member.outputs) return make_uint4(0, 0, 0, 0);
        return eight_ranks(at<const T>(member.b, (u64)n * member.rank), i % BLOCKS * RANKS, member.rank);
    };
    fill<4>(quotient_up(columns, STRIP) * 2 * BLOCKS, place, load, [&](u32 i, uint4 bits) { factors[i * WARP + place.lane] = bits; });
}

/// sums += tile · factor, for the strip whose factors are given.
template <typename T, u32 BLOCKS, bool TURNED>
__device__ __forceinline__ void multiply(float (&sums)[BLOCKS][4], const uint4 *tile, const uint4 *factors, u32 lane) {
#pragma unroll
    for (u32 span = 0; span < 2; span++) {
        const uint4 low = tile[2 * span * WARP], high = tile[(2 * span + 1) * WARP];
        const u32 first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
        for (u32 block = 0; block < BLOCKS; block++) {
            const uint4 *from = factors + (span * BLOCKS + block) * WARP + lane;
            u32 factor[4];
            if constexpr (TURNED) {
                load_matrices_transposed(factor, shared_address(from));
            } else {
                const uint4 bits = *from;
                factor[0] = bits.x, factor[1] = bits.y, factor[2] = bits.z, factor[3] = bits.w;
            }
            multiply_add<T>(sums[block], first, factor[0], factor[1]);
            multiply_add<T>(sums[block], second, factor[2], factor[3]);
        }
    }
}

/// Adds what the other warp of the tile has. `shared` is free; a barrier is to follow before it is used again.
template <u32 BLOCKS> __device__ __forceinline__ void add_other(float (&sums)[BLOCKS][4], const Place &place, float4 *shared) {
    static_assert(SPLIT == 2 && WARPS * BLOCKS * PIECE_BYTES <= FACTOR_BYTES, "one other, and all fits");
    float4 *own = shared + place.warp * BLOCKS * WARP + place.lane;
#pragma unroll
    for (u32 block = 0; block < BLOCKS; block++)
        own[block * WARP] = make_float4(sums[block][0], sums[block][1], sums[block][2], sums[block][3]);
    __syncthreads();
    const float4 *other = shared + (place.warp ^ 1) * BLOCKS * WARP + place.lane;
#pragma unroll
    for (u32 block = 0; block < BLOCKS; block++) {
        const float4 more = other[block * WARP];
        sums[block][0] += more.x, sums[block][1] += more.y, sums[block][2] += more.z, sums[block][3] += more.w;
    }
}

/// Writes one block of ranks of h or g.
template <typename T>
__device__ __forceinline__ void store_block(u64 to, u32 width, u32 first, const float (&sums)[4], const Place &place, u32 rows) {
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 row = place.row + 8 * half;
        if (row < rows)
            *at<u32>(to, ((u64)row * width + first + place.lane % 4 * 2) / 2) = pack<T>(sums[2 * half], sums[2 * half + 1]);
    }
}

/// h of all members for BLOCK_ROWS rows. BLOCKS: at least as many as they have together.
template <typename T, u32 BLOCKS> __device__ __forceinline__ void pull(const Arguments &g) {
    constexpr u32 CHUNK = chunk(BLOCKS * PIECE_BYTES);
    const Place place;
    const u32 strips = quotient_up(g.inputs, STRIP), steps = (strips + SPLIT - 1 - place.split) / SPLIT;
    uint4 *factors = reinterpret_cast<uint4 *>(dynamic_shared() + FACTORS_AT);
    const auto copy = [&](u32 step) {
        if (step < steps)
            copy_tile(place.stage(step), at<const T>(g.x, 0), g.inputs, g.rows, place.row,
                      place.column(step * SPLIT + place.split));
        copy_commit();
    };
#pragma unroll
    for (u32 step = 0; step < DEPTH; step++) copy(step);
    float sums[BLOCKS][4] = {};
    u32 step = 0;
    for (u32 first = 0; first < g.inputs; first += CHUNK) {
        if (first > 0) __syncthreads(); // the factors before were read
        stage_along<T, BLOCKS>(g, place, first, min(CHUNK, g.inputs - first), factors);
        __syncthreads();
        const u32 end = min(steps, (first + CHUNK) / (SPLIT * STRIP));
#pragma unroll 1
        for (; step < end; step++) {
            copy_wait<DEPTH - 1>();
            const u32 span = (step * SPLIT + place.split) * 2 - first / SPAN;
            multiply<T, BLOCKS, false>(sums, place.tile(step), factors + span * BLOCKS * WARP, place.lane);
            copy(step + DEPTH);
        }
    }
    __syncthreads();
    add_other(sums, place, reinterpret_cast<float4 *>(factors));
    if (place.split != 0) return;
#pragma unroll
    for (u32 i = 0; i < BLOCKS; i++) {
        const Block block = block_of(g, i);
        if (block.member == g.count) return;
        const Member &member = g.members[block.member];
        store_block<T>(member.h, member.width(), block.first, sums[i], place, g.rows);
    }
}

/// What a warp of `through` reads, one after the other: its strips of each dy, then of dx.
struct Cursor {
    u32 source, strip, step;

    __device__ __forceinline__ static u32 width(const Arguments &g, u32 source) {
        return source < g.count ? g.members[source].outputs : g.inputs;
    }
    /// Starts the copy of the next tile, if there is one.
    template <typename T> __device__ __forceinline__ void copy(const Arguments &g, const Place &place, u32 sources) {
        while (source < sources && strip * STRIP >= width(g, source)) source++, strip = place.split;
        const u32 to = place.stage(step), column = place.column(strip);
        if (source < g.count)
            copy_tile(to, at<const T>(g.members[source].y, 0), g.members[source].outputs, g.rows, place.row, column);
        else if (source < sources)
            copy_tile<T, true>(to, at<const T>(g.dx, 0), g.inputs, g.rows, place.row, column);
        copy_commit();
        step++, strip += SPLIT;
    }
};

/// Eight columns of two rows.
struct TwoRows {
    uint4 first, second;
};

/// A of all members as the right factors of products along the ranks: for each span and pair of blocks, two registers for each
/// lane and eight columns. `blocks`: of each member.
template <typename T>
__device__ __forceinline__ void stage_ranks(const Arguments &g, const Place &place, u32 blocks, u32 pairs, u32 first, u32 columns,
                                            u32 *factors) {
    const u32 half = place.lane / 16, two = place.lane / 4 % 4, piece = place.lane % 4;
    const auto load = [&](u32 i) {
        const u32 block = i % pairs * 2 + half, member = block / blocks, k = first + i / pairs * SPAN + piece * 8;
        const u32 rank = block % blocks * RANKS + 2 * two;
        TwoRows rows = {make_uint4(0, 0, 0, 0), make_uint4(0, 0, 0, 0)};
        if (member >= g.count || k >= g.inputs) return rows;
        const T *from = at<const T>(g.members[member].a, (u64)rank * g.inputs + k);
        if (rank < g.members[member].rank) rows.first = load_kept(from);
        if (rank + 1 < g.members[member].rank) rows.second = load_kept(from + g.inputs);
        return rows;
    };
    fill<4>(quotient_up(columns, STRIP) * 2 * pairs, place, load, [&](u32 i, const TwoRows &rows) {
        const u32 low[4] = {rows.first.x, rows.first.y, rows.first.z, rows.first.w};
        const u32 high[4] = {rows.second.x, rows.second.y, rows.second.z, rows.second.w};
#pragma unroll
        for (u32 tile = 0; tile < 4; tile++) {
            u32 *to = factors + ((i * 2 + tile / 2) * WARP + piece * 8 + two) * 4 + tile % 2 * 2 + half;
            to[0] = lower(low[tile], high[tile]);
            to[16] = upper(low[tile], high[tile]);
        }
    });
}

/// Adds Σ scale g A to a tile of dx.
template <typename T, u32 PAIRS>
__device__ __forceinline__ void add_through(const Arguments &g, const Place &place, u32 strip, const uint4 *tile,
                                            const u32 (&left)[PAIRS][4], u32 pairs, const uint4 *factors) {
#pragma unroll
    for (u32 span = 0; span < 2; span++) {
        const uint4 low = tile[2 * span * WARP], high = tile[(2 * span + 1) * WARP];
        const u32 bits[2][4] = {{low.x, low.y, low.z, low.w}, {high.x, high.y, high.z, high.w}};
        float sums[4][4];
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            const float2 values = unpack<T>(bits[i % 2][i / 2]);
            sums[i / 2][i % 2 * 2] = values.x, sums[i / 2][i % 2 * 2 + 1] = values.y;
        }
#pragma unroll
        for (u32 pair = 0; pair < PAIRS; pair++) {
            if (pair >= pairs) break;
            const uint4 *from = factors + (span * pairs + pair) * 2 * WARP + place.lane;
            const uint4 lower = from[0], upper = from[WARP];
            multiply_add<T>(sums[0], left[pair], lower.x, lower.y);
            multiply_add<T>(sums[1], left[pair], lower.z, lower.w);
            multiply_add<T>(sums[2], left[pair], upper.x, upper.y);
            multiply_add<T>(sums[3], left[pair], upper.z, upper.w);
        }
        const u32 k = place.column(strip) + span * SPAN;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 row = place.row + 8 * half, i = 2 * half;
            if (row >= g.rows || k >= g.inputs) continue;
            store_last(at<uint4>(g.dx, ((u64)row * g.inputs + k) / 8),
                       make_uint4(pack<T>(sums[0][i], sums[0][i + 1]), pack<T>(sums[1][i], sums[1][i + 1]),
                                  pack<T>(sums[2][i], sums[2][i + 1]), pack<T>(sums[3][i], sums[3][i + 1])));
        }
    }
}

/// g of a member, without what the other warp of the tile adds. The factors are free at the end only behind a barrier.
template <typename T, u32 BLOCKS>
__device__ __forceinline__ void pull_back(const Arguments &g, const Place &place, const Member &member, float (&sums)[BLOCKS][4],
                                          Cursor &cursor, u32 sources, uint4 *factors) {
    constexpr u32 CHUNK = chunk(BLOCKS * PIECE_BYTES);
    for (u32 first = 0; first < member.outputs; first += CHUNK) {
        const u32 columns = min(CHUNK, member.outputs - first);
        __syncthreads(); // the factors before were read
        stage_turned<T, BLOCKS>(member, place, first, columns, factors);
        __syncthreads();
#pragma unroll 1
        for (u32 strip = place.split; strip * STRIP < columns; strip += SPLIT) {
            copy_wait<DEPTH - 1>();
            multiply<T, BLOCKS, true>(sums, place.tile(cursor.step), factors + strip * 2 * BLOCKS * WARP, place.lane);
            cursor.copy<T>(g, place, sources);
        }
    }
}

/// g of all members and dx for BLOCK_ROWS rows. BLOCKS: at least as many as each member has.
template <typename T, u32 BLOCKS> __device__ __forceinline__ void through(const Arguments &g) {
    constexpr u32 ALL = MEMBERS * BLOCKS, PAIRS = (ALL + 1) / 2;
    const Place place;
    const u32 sources = g.count + (g.dx != 0);
    uint4 *factors = reinterpret_cast<uint4 *>(dynamic_shared() + FACTORS_AT);
    Cursor cursor{0, place.split, 0};
#pragma unroll 1
    for (u32 step = 0; step < DEPTH; step++) cursor.copy<T>(g, place, sources);
    float sums[2 * PAIRS][4] = {};
#pragma unroll
    for (u32 i = 0; i < MEMBERS; i++) {
        float own[BLOCKS][4] = {};
        if (i < g.count) pull_back<T, BLOCKS>(g, place, g.members[i], own, cursor, sources, factors);
#pragma unroll
        for (u32 j = 0; j < BLOCKS * 4; j++) sums[i * BLOCKS + j / 4][j % 4] = own[j / 4][j % 4];
    }
    __syncthreads();
    add_other(sums, place, reinterpret_cast<float4 *>(factors));
    u32 left[PAIRS][4];
#pragma unroll
    for (u32 i = 0; i < 2 * PAIRS; i++) {
        const bool is_there = i / BLOCKS < g.count;
        const Member &member = g.members[is_there ? i / BLOCKS : 0];
        if (is_there && place.split == 0 && i % BLOCKS < member.blocks())
            store_block<T>(member.g, member.width(), i % BLOCKS * RANKS, sums[i], place, g.rows);
        const float scale = is_there ? member.scale : 0;
        // As left factors, a block's sums are where they have to be; they are rounded once.
        left[i / 2][i % 2 * 2] = pack<T>(scale * sums[i][0], scale * sums[i][1]);
        left[i / 2][i % 2 * 2 + 1] = pack<T>(scale * sums[i][2], scale * sums[i][3]);
    }
    const u32 pairs = (g.count * BLOCKS + 1) / 2, columns = chunk(pairs * 2 * PIECE_BYTES);
    for (u32 first = 0; g.dx != 0 && first < g.inputs; first += columns) {
        const u32 count = min(columns, g.inputs - first);
        __syncthreads(); // the factors before were read
        stage_ranks<T>(g, place, BLOCKS, pairs, first, count, reinterpret_cast<u32 *>(factors));
        __syncthreads();
#pragma unroll 1
        for (u32 strip = place.split; strip * STRIP < count; strip += SPLIT) {
            copy_wait<DEPTH - 1>();
            add_through<T, PAIRS>(g, place, first / STRIP + strip, place.tile(cursor.step), left, pairs,
                                  factors + strip * 4 * pairs * WARP);
            cursor.copy<T>(g, place, sources);
        }
    }
}

/// Tiles of a warp of `up`; all are under way before the first is used.
constexpr u32 UP_TILES = DEPTH, UP_ROWS = UP_TILES * TILE;

/// B for a strip of y, as right factors of products along the ranks: the outputs are in the order of a lane's pieces.
template <typename T>
__device__ __forceinline__ void load_up(const Member &member, u32 strip, u32 lane, u32 (&factors)[2][4][2]) {
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        const u32 n = strip * STRIP + i / 4 * SPAN + lane / 8 * 8 + i % 4 * 2 + lane / 4 % 2;
        const T *row = at<const T>(member.b, (u64)n * member.rank);
#pragma unroll
        for (u32 half = 0; half < 2; half++)
            factors[i / 4][i % 4][half] = n < member.outputs ? two_ranks(row, half * RANKS + lane % 4 * 2, member.rank) : 0;
    }
}

/// h of a tile, as left factors of such products.
template <typename T>
__device__ __forceinline__ void load_down(const Member &member, u32 row, u32 rows, u32 lane, u32 (&left)[4]) {
    const u32 width = member.width();
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u32 m = row + i % 2 * 8, rank = i / 2 * RANKS + lane % 4 * 2;
        left[i] = m < rows && rank < width ? *at<const u32>(member.h, ((u64)m * width + rank) / 2) : 0;
    }
}

/// y + scale · h Bᵀ for a span of a tile, of which a lane has eight columns of two rows.
template <typename T>
__device__ __forceinline__ void add_up(u32 (&bits)[2][4], const u32 (&left)[4], const u32 (&factors)[4][2], float scale) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        float sums[4] = {};
        multiply_add<T>(sums, left, factors[i][0], factors[i][1]);
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const float2 before = unpack<T>(bits[half][i]);
            bits[half][i] = pack<T>(before.x + scale * sums[2 * half], before.y + scale * sums[2 * half + 1]);
        }
    }
}

/// A strip of one member's y for UP_ROWS rows, by each warp.
template <typename T> __device__ __forceinline__ void up(const Arguments &g) {
    const u32 lane = threadIdx.x % WARP, warp = blockIdx.x * WARPS + threadIdx.x / WARP;
    u32 strips = 0, index = 0;
    for (u32 i = 0; i < g.count; i++) strips += quotient_up(g.members[i].outputs, STRIP);
    const u32 row = warp / strips * UP_ROWS + lane / 4;
    u32 strip = warp % strips;
    for (u32 own; strip >= (own = quotient_up(g.members[index].outputs, STRIP)); index++) strip -= own;
    const Member &member = g.members[index];
    const u32 column = strip * STRIP + lane % 4 * 8;
    unsigned char *own = dynamic_shared() + threadIdx.x / WARP * RING_BYTES;
#pragma unroll
    for (u32 tile = 0; tile < UP_TILES; tile++) {
        copy_tile(shared_address(own) + tile * STAGE_BYTES + lane * 16, at<const T>(member.y, 0), member.outputs, g.rows,
                  row + tile * TILE, column);
        copy_commit();
    }
    u32 factors[2][4][2], left[UP_TILES][4];
    load_up<T>(member, strip, lane, factors);
#pragma unroll
    for (u32 tile = 0; tile < UP_TILES; tile++) load_down<T>(member, row + tile * TILE, g.rows, lane, left[tile]);
#pragma unroll
    for (u32 tile = 0; tile < UP_TILES; tile++) {
        copy_wait<UP_TILES - 1>();
        const uint4 *pieces = reinterpret_cast<const uint4 *>(own + tile * STAGE_BYTES) + lane;
#pragma unroll
        for (u32 span = 0; span < 2; span++) {
            const uint4 low = pieces[2 * span * WARP], high = pieces[(2 * span + 1) * WARP];
            u32 bits[2][4] = {{low.x, low.y, low.z, low.w}, {high.x, high.y, high.z, high.w}};
            add_up<T>(bits, left[tile], factors[span], member.scale);
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                const u32 m = row + tile * TILE + half * 8, n = column + span * SPAN;
                if (m < g.rows && n < member.outputs)
                    *at<uint4>(member.y, ((u64)m * member.outputs + n) / 8) =
                        make_uint4(bits[half][0], bits[half][1], bits[half][2], bits[half][3]);
            }
        }
        copy_commit(); // nothing: the next one is waited for as this one was
    }
}

/// Warps of `outers` that share the tiles of a strip, and the strips of a thread block: side by side, so that what it reads at a
/// time are longer pieces of rows.
constexpr u32 ROW_WARPS = 2, STRIPS = WARPS / ROW_WARPS;

/// `outers` has the rows of g or h under way beside a tile: 16 bytes of a lane for two blocks of ranks.
constexpr __host__ __device__ u32 outer_stage(u32 blocks) { return STAGE_BYTES + blocks / 2 * PIECE_BYTES; }
constexpr __host__ __device__ u32 outer_bytes(u32 blocks) { return WARPS * DEPTH * outer_stage(blocks); }
/// Of a warp's sums in shared memory, `[blocks, RANKS, SUM_STRIDE]`: some space behind each row spares conflicts.
constexpr u32 SUM_STRIDE = STRIP + 8;

/// The left factors of a strip: a row of `width` ranks for each pair of blocks, as far as a lane reads it.
template <u32 BLOCKS> struct Left {
    u64 data[BLOCKS / 2];
    u32 width[BLOCKS / 2];
};

/// Starts the copies for one tile. The lane has eight columns of the rows 4 · (lane % 4) and three further. dy was read before,
/// by `through`: what is read here goes first, so that it stays until then.
template <typename T, u32 BLOCKS>
__device__ __forceinline__ void copy_outer(const T *right, u32 width, u32 column, const Left<BLOCKS> &left, u32 to, u32 first,
                                           u32 end, u32 lane) {
#pragma unroll
    for (u32 piece = 0; piece < PIECES; piece++) {
        const u32 row = first + lane % 4 * 4 + piece;
        const bool valid = row < end && column < width;
        copy_last(to + piece * PIECE_BYTES, right + (valid ? (u64)row * width + column : 0), valid);
    }
    // Rows in the order in which matrices are loaded and turned.
    const u32 row = first + lane % 8 / 2 * 4 + lane / 8 % 2 * 2 + lane % 2;
#pragma unroll
    for (u32 pair = 0; pair < BLOCKS / 2; pair++) {
        const bool valid = row < end && left.width[pair] > 0;
        const T *from = at<const T>(left.data[pair], valid ? (u64)row * left.width[pair] : 0);
        copy_line(to + (PIECES + pair) * PIECE_BYTES, from, valid);
    }
}

/// sums[columns, ranks] += rightᵀ · left for a tile. The columns of a lane's pieces become rows of the product.
template <typename T, u32 BLOCKS>
__device__ __forceinline__ void multiply_outer(float (&sums)[BLOCKS][4][4], const uint4 *tile, u32 left) {
    u32 factors[BLOCKS / 2][4];
#pragma unroll
    for (u32 pair = 0; pair < BLOCKS / 2; pair++) load_matrices_transposed(factors[pair], left + pair * PIECE_BYTES);
    const uint4 a = tile[0], b = tile[WARP], c = tile[2 * WARP], d = tile[3 * WARP];
    const u32 rows[4][4] = {{a.x, b.x, c.x, d.x}, {a.y, b.y, c.y, d.y}, {a.z, b.z, c.z, d.z}, {a.w, b.w, c.w, d.w}};
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const u32 *of = rows[i];
        const u32 right[4] = {lower(of[0], of[1]), upper(of[0], of[1]), lower(of[2], of[3]), upper(of[2], of[3])};
#pragma unroll
        for (u32 block = 0; block < BLOCKS; block++)
            multiply_add<T>(sums[block][i], right, factors[block / 2][block % 2 * 2], factors[block / 2][block % 2 * 2 + 1]);
    }
}

/// Writes a warp's sums to its part of the shared memory.
template <u32 BLOCKS> __device__ __forceinline__ void share_sums(const float (&sums)[BLOCKS][4][4], float *shared, u32 lane) {
#pragma unroll
    for (u32 i = 0; i < BLOCKS * 4; i++) {
        const float(&of)[4][4] = sums[i / 4];
        const u32 odd = i % 2, upper = i / 2 % 2; // of the two ranks, of the eight columns
        float *to = shared + (i / 4 * RANKS + lane % 4 * 2 + odd) * SUM_STRIDE + lane / 4 * 8 + upper * 4;
        const float(&low)[4] = of[2 * upper], (&high)[4] = of[2 * upper + 1];
        *reinterpret_cast<float4 *>(to) = make_float4(low[odd], low[2 + odd], high[odd], high[2 + odd]);
    }
}

/// A warp's part of `rightᵀ left` for a strip of `right [M, width]` and the tiles `index`, `index + ROW_WARPS`… of a part of the
/// rows, left in shared memory where its tiles were.
template <typename T, u32 BLOCKS, u32 STAGE>
__device__ __forceinline__ void outer(const Arguments &g, u64 data, u32 width, u32 strip, const Left<BLOCKS> &left, u32 index,
                                      unsigned char *own, u32 lane) {
    const u32 start = blockIdx.y * g.part_rows, end = min(g.rows, start + g.part_rows), tiles = quotient_up(end - start, TILE);
    const u32 steps = tiles > index ? quotient_up(tiles - index, ROW_WARPS) : 0, to = shared_address(own) + lane * 16;
    const auto copy = [&](u32 step) {
        if (step < steps)
            copy_outer<T, BLOCKS>(at<const T>(data, 0), width, strip * STRIP + lane / 4 * 8, left, to + step % DEPTH * STAGE,
                                  start + (step * ROW_WARPS + index) * TILE, end, lane);
        copy_commit();
    };
#pragma unroll
    for (u32 step = 0; step < DEPTH; step++) copy(step);
    float sums[BLOCKS][4][4] = {};
#pragma unroll 1
    for (u32 step = 0; step < steps; step++) {
        copy_wait<DEPTH - 1>();
        __syncwarp(); // the left factors are other lanes' copies, too
        const u32 at = step % DEPTH * STAGE;
        multiply_outer<T, BLOCKS>(sums, reinterpret_cast<const uint4 *>(own + at) + lane, to + at + PIECES * PIECE_BYTES);
        __syncwarp(); // all have read them
        copy(step + DEPTH);
    }
    static_assert(BLOCKS * RANKS * SUM_STRIDE * 4 <= DEPTH * STAGE, "a warp's sums fit where its tiles were");
    share_sums(sums, reinterpret_cast<float *>(own), lane);
}

/// g of all members, as a lane reads it.
template <typename T, u32 BLOCKS> __device__ __forceinline__ Left<BLOCKS> left_of_all(const Arguments &g, u32 lane) {
    Left<BLOCKS> left;
#pragma unroll
    for (u32 pair = 0; pair < BLOCKS / 2; pair++) {
        const Block block = block_of(g, 2 * pair + lane / 16);
        const bool is_there = block.member < g.count;
        const Member &member = g.members[is_there ? block.member : 0];
        left.data[pair] = member.g + (is_there ? block.first * sizeof(T) : 0);
        left.width[pair] = is_there ? member.width() : 0;
    }
    return left;
}

/// h of one member.
template <typename T> __device__ __forceinline__ Left<MEMBER_BLOCKS> left_of(const Member &member, u32 lane) {
    const bool is_there = lane / 16 < member.blocks();
    return {{member.h + (is_there ? lane / 16 * RANKS * sizeof(T) : 0)}, {is_there ? member.width() : 0}};
}

/// Writes one sum of a strip, for rank `number` of all blocks' of x, or of the member's.
__device__ __forceinline__ void store_sum(const Arguments &g, bool is_of_x, u32 member, u32 number, u32 column, float sum) {
    if (is_of_x) {
        const Block block = block_of(g, number / RANKS);
        member = block.member, number = block.first + number % RANKS;
    }
    if (member == g.count) return;
    const Member &to = g.members[member];
    const u32 width = is_of_x ? g.inputs : to.outputs;
    if (number < to.rank && column < width)
        *at<float>(is_of_x ? to.da : to.db, ((u64)blockIdx.y * to.rank + number) * width + column) = sum;
}

/// Parts of the gradients of all A, or of one B, for the strips of x, then of each dy; `blockIdx.y` is the part of the rows.
/// BLOCKS: at least as many as the members have together.
template <typename T, u32 BLOCKS> __device__ __forceinline__ void outers(const Arguments &g) {
    constexpr u32 STAGE = outer_stage(BLOCKS);
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, index = warp % ROW_WARPS, of_x = quotient_up(g.inputs, STRIP);
    u32 strip = blockIdx.x * STRIPS + warp / ROW_WARPS, member = 0;
    unsigned char *own = dynamic_shared() + warp * DEPTH * STAGE;
    const bool is_of_x = strip < of_x;
    if (is_of_x) {
        outer<T, BLOCKS, STAGE>(g, g.x, g.inputs, strip, left_of_all<T, BLOCKS>(g, lane), index, own, lane);
    } else {
        strip -= of_x;
        for (u32 count; member < g.count && strip >= (count = quotient_up(g.members[member].outputs, STRIP)); member++) strip -= count;
        if (member < g.count) {
            const Member &of = g.members[member];
            outer<T, MEMBER_BLOCKS, STAGE>(g, of.y, of.outputs, strip, left_of<T>(of, lane), index, own, lane);
        }
    }
    __syncthreads();
    if (!is_of_x && member == g.count) return;
    const float *sums = reinterpret_cast<const float *>(own - index * DEPTH * STAGE);
    const u32 count = (is_of_x ? BLOCKS : MEMBER_BLOCKS) * RANKS * STRIP;
    for (u32 i = index * WARP + lane; i < count; i += ROW_WARPS * WARP) {
        float sum = 0;
#pragma unroll
        for (u32 other = 0; other < ROW_WARPS; other++)
            sum += sums[other * (DEPTH * STAGE / 4) + i / STRIP * SUM_STRIDE + i % STRIP];
        store_sum(g, is_of_x, member, i / STRIP, strip * STRIP + i % STRIP, sum);
    }
}

} // namespace together
