// Adapters of up to three products of one input on the way back, over many rows: the passes `through` and `outers` of together.cuh,
// whose words are used here.
#pragma once
#include "together.cuh"

namespace together {

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
