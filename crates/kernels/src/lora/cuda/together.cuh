// Adapters of up to three products of one input, over many rows, with tensor cores.
//
//   pull:    h_i = x A_iᵀ                                       x is read once for all
//   up:      y_i += scale_i h_i B_iᵀ                            each y is read and written once
//   through: g_i = dy_i B_i, dx += Σ scale_i g_i A_i            each dy is read once, dx read and written once
//   outers:  a part of g_iᵀ x and of h_iᵀ dy_i                  x and each dy are read once
//
// The last two are in together_back.cuh.
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

} // namespace together
