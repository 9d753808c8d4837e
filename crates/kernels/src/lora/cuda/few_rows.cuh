// A dense layer for up to 16 rows with an adapter per row, in one launch, for Hopper and what comes after it:
//
//   y[m] = x[m] Wᵀ + bias + scale_s (x[m] A_sᵀ) B_sᵀ, where s is the slot of row m.
//
// So few rows cost what reading W costs, and whoever waits for anything else must not be in the way of that. So the warps of a
// block have three trades. One loads boxes of W and of x into a ring of stages, by the copy engine. Some multiply what has come.
// The others finish: they compute the block's share of x Aᵀ, fetch the adapters' B meanwhile, and add all up at the end.
//
// Each block of the first ones has a share of x Aᵀ, and all blocks wait for all shares when their own part of x Wᵀ is nearly
// done. Blocks start in the order of their indices, and nobody waits before its own share is done.
#pragma once
#include "../../attention/cuda/warp.cuh"
#include "hopper.cuh"

namespace lora {

using namespace attention;

constexpr u32 ROWS = 16;
/// A box is 64 inputs of each of its rows: 128 bytes, the pattern in which the copy engine spreads them over the banks.
constexpr u32 BOX = 64, LINE = 128;
/// Warps that finish, and the columns of A that one of them takes at a time.
constexpr u32 FINISHERS = 8, FINISHING = FINISHERS * WARP, SLICE = WARP * 8;
/// Ranks of A that a lane takes together.
constexpr u32 RANKS = 8;
/// All that a block of such a GPU can have.
constexpr u32 SHARED_BYTES = 227 << 10;
/// Blocks that compute x Aᵀ: as many as a large GPU runs at the same time.
constexpr u32 SHARES = 128;
/// How a block multiplies: up to `GROUPS` groups of warps share out its outputs, `TILES` of 8 to each; `BOXES` one behind the other
/// make a stage, so that 512 bytes of each row of W are wanted at the same time; the `PARTS` warps of a group share out the boxes
/// of a stage, where one alone could not keep up.
template <u32 TILES_, u32 PARTS_, u32 GROUPS_> struct Shape {
    static constexpr u32 TILES = TILES_, PARTS = PARTS_, BOXES = 4, COLUMNS = 8 * TILES, MOST_COLUMNS = COLUMNS * GROUPS_;
    static constexpr u32 THREADS = WARP * (GROUPS_ * PARTS + 1 + FINISHERS);
    /// Pairs of outputs of each lane that finishes.
    static constexpr u32 PAIRS = (ROWS * MOST_COLUMNS / 2 + FINISHING - 1) / FINISHING;
};

/// The host fills the same struct.
struct alignas(128) Arguments {
    /// W `[outputs, inputs]` in boxes of `columns` rows, x `[rows, inputs]` in boxes of `ROWS`.
    TensorMap weight_map, x_map;
    /// x, bias `[outputs]` or 0, y `[rows, outputs]`
    u64 x, bias, y;
    /// A `[slots, rank, inputs]`, B `[slots, outputs, rank]`, a scale per slot, a slot per row; a row whose slot is beyond
    /// all has no adapter.
    u64 a, b, scales, slots;
    /// Of the adapters' memory: `scale · x Aᵀ [slices, rows, rank]`, and two counters that are zero before and after.
    u64 down, counters;
    /// `rank` is 0 without adapters.
    u32 rows, inputs, outputs, rank, slot_count;
    /// Outputs of a block, and stages of its ring.
    u32 columns, stages;
};

__host__ __device__ constexpr u32 stage_bytes(u32 columns, u32 boxes) { return boxes * (ROWS + columns) * LINE; }

/// In shared memory, from a multiple of 1024 bytes on: the stages, the sums of each part, x Aᵀ, the barriers.
struct Plan {
    u32 stages, sums, down, barriers, end;
    __host__ __device__ constexpr Plan(u32 count, u32 columns, u32 boxes, u32 parts, u32 rank)
        : stages(0), sums(count * stage_bytes(columns, boxes)), down(sums + parts * ROWS * columns * 4),
          barriers(down + ROWS * rank * 4), end(barriers + (2 * count + 1) * 8) {}
};

template <typename T> __device__ __forceinline__ const T *at(u64 address, u64 index) {
    return reinterpret_cast<const T *>(address) + index;
}

template <typename T> __device__ __forceinline__ void widen_eight(uint4 bits, float (&to)[8]) {
    to[0] = low(bits.x, T()), to[1] = high(bits.x, T());
    to[2] = low(bits.y, T()), to[3] = high(bits.y, T());
    to[4] = low(bits.z, T()), to[5] = high(bits.z, T());
    to[6] = low(bits.w, T()), to[7] = high(bits.w, T());
}

/// The product of eight neighbours, given in f32 and as bits.
template <typename T> __device__ __forceinline__ float dot(const float (&values)[8], uint4 bits, float sum) {
    float factors[8];
    widen_eight<T>(bits, factors);
#pragma unroll
    for (u32 j = 0; j < 8; j++) sum = values[j] * factors[j] + sum;
    return sum;
}

/// Where a block's barriers are: those of a stage, full and empty, and one for its sums.
struct Barriers {
    u32 first, stages;
    __device__ __forceinline__ u32 full(u32 stage) const { return first + 16 * stage; }
    __device__ __forceinline__ u32 empty(u32 stage) const { return first + 16 * stage + 8; }
    __device__ __forceinline__ u32 sums() const { return first + 16 * stages; }
};

/// A place in the ring, and how often it went round.
struct Turn {
    u32 stage = 0, parity = 0;
    __device__ __forceinline__ void advance(u32 stages) {
        if (++stage == stages) stage = 0, parity ^= 1;
    }
};

/// One lane keeps the ring full.
template <typename S> __device__ __forceinline__ void load_stages(const Arguments &g, Barriers barriers, u32 memory) {
    const u32 bytes = stage_bytes(g.columns, S::BOXES), turns = (g.inputs + S::BOXES * BOX - 1) / (S::BOXES * BOX);
    Turn turn;
    for (u32 t = 0; t < turns; t++) {
        if (t >= g.stages) barrier_wait(barriers.empty(turn.stage), turn.parity ^ 1);
        const u32 full = barriers.full(turn.stage);
        barrier_expect(full, bytes);
#pragma unroll
        for (u32 box = 0; box < S::BOXES; box++) {
            const u32 to = memory + turn.stage * bytes + box * (ROWS + g.columns) * LINE;
            copy_box(to, &g.x_map, (t * S::BOXES + box) * BOX, 0, full, KEPT);
            copy_box(to + ROWS * LINE, &g.weight_map, (t * S::BOXES + box) * BOX, blockIdx.x * g.columns, full, ONCE);
        }
        turn.advance(g.stages);
    }
}

/// The address of 16 bytes of a row of a box: the copy engine exchanges the places of a line by the row's last three bits.
__device__ __forceinline__ u32 spread(u32 row, u32 piece) { return row * LINE + (piece ^ row % 8) * 16; }

/// sums += x Wᵀ for the inputs of a box. Lane 8 i + r gives the address of row r of the i-th matrix.
template <typename T, typename S>
__device__ __forceinline__ void multiply_box(float (&sums)[S::TILES][4], u32 x, u32 weight, u32 lane) {
    const u32 row = lane % 8, matrix = lane / 8;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 first[4], second[4];
        load_matrices(first, x + spread(row + matrix % 2 * 8, 4 * half + matrix / 2));
        load_matrices(second, x + spread(row + matrix % 2 * 8, 4 * half + 2 + matrix / 2));
#pragma unroll
        for (u32 n = 0; n < S::TILES; n++) {
            u32 weights[4];
            load_matrices(weights, weight + n * 8 * LINE + spread(row, 4 * half + matrix));
            multiply_add<T>(sums[n], first, weights[0], weights[1]);
            multiply_add<T>(sums[n], second, weights[2], weights[3]);
        }
    }
}

/// One warp's outputs of all stages, or of its part of them; they come to lie in `to [ROWS, columns]`.
template <typename T, typename S>
__device__ __forceinline__ void multiply(const Arguments &g, Barriers barriers, u32 memory, u32 warp, u32 lane, float *to) {
    const u32 bytes = stage_bytes(g.columns, S::BOXES), turns = (g.inputs + S::BOXES * BOX - 1) / (S::BOXES * BOX);
    const u32 groups = g.columns / S::COLUMNS, column = warp % groups * S::COLUMNS, part = warp / groups;
    float sums[S::TILES][4] = {};
    Turn turn;
#pragma unroll 1
    for (u32 t = 0; t < turns; t++) {
        barrier_wait(barriers.full(turn.stage), turn.parity);
        __syncwarp(); // who waits is on its own, and what follows is for all lanes
#pragma unroll
        for (u32 own = 0; own < S::BOXES / S::PARTS; own++) {
            const u32 x = memory + turn.stage * bytes + (own * S::PARTS + part) * (ROWS + g.columns) * LINE;
            multiply_box<T, S>(sums, x, x + (ROWS + column) * LINE, lane);
        }
        reads_done(); // else they may still be under way when the copy engine writes
        __syncwarp();
        if (lane == 0) barrier_arrive(barriers.empty(turn.stage));
        turn.advance(g.stages);
    }
    to += part * ROWS * g.columns;
#pragma unroll
    for (u32 n = 0; n < S::TILES; n++)
#pragma unroll
        for (u32 half = 0; half < 2; half++)
            *reinterpret_cast<float2 *>(to + (lane / 4 + 8 * half) * g.columns + column + 8 * n + lane % 4 * 2) =
                make_float2(sums[n][2 * half], sums[n][2 * half + 1]);
    barrier_arrive(barriers.sums());
}

/// Sums of eight values over a warp: the lanes 4 i … 4 i + 3 get the sum of value i.
__device__ __forceinline__ float warp_sums(float (&values)[RANKS], u32 lane) {
    u32 mask = WARP / 2;
#pragma unroll
    for (u32 count = RANKS / 2; count > 0; count /= 2) {
        const bool upper = (lane & mask) != 0;
#pragma unroll
        for (u32 i = 0; i < count; i++) {
            const float kept = upper ? values[i + count] : values[i], given = upper ? values[i] : values[i + count];
            values[i] = kept + __shfl_xor_sync(~0u, given, mask);
        }
        mask /= 2;
    }
    const float sum = values[0] + __shfl_xor_sync(~0u, values[0], 2);
    return sum + __shfl_xor_sync(~0u, sum, 1);
}

/// The block's share of `scale · x Aᵀ`: a warp takes eight ranks of one row and a slice of the inputs.
template <typename T> __device__ __forceinline__ void project(const Arguments &g, u32 warp, u32 lane) {
    const u32 slices = (g.inputs + SLICE - 1) / SLICE, blocks = g.rank / RANKS, units = g.rows * blocks * slices;
    const u32 shares = gridDim.x < SHARES ? gridDim.x : SHARES;
    if (blockIdx.x >= shares) return;
    float *down = const_cast<float *>(at<float>(g.down, 0));
    for (u32 unit = blockIdx.x + warp * shares; unit < units; unit += shares * FINISHERS) {
        const u32 slice = unit % slices, first = unit / slices % blocks * RANKS, row = unit / slices / blocks;
        const u32 slot = *at<u32>(g.slots, row), k = slice * SLICE + lane * 8;
        if (slot < g.slot_count) {
            float sums[RANKS] = {};
            if (k < g.inputs) {
                const T *a = at<T>(g.a, ((u64)slot * g.rank + first) * g.inputs + k);
                uint4 factors[RANKS], bits = load_16(at<T>(g.x, (u64)row * g.inputs + k));
#pragma unroll
                for (u32 j = 0; j < RANKS; j++) factors[j] = load_16(a + (u64)j * g.inputs);
                float values[8];
                widen_eight<T>(bits, values);
#pragma unroll
                for (u32 j = 0; j < RANKS; j++) sums[j] = dot<T>(values, factors[j], 0);
            }
            const float sum = warp_sums(sums, lane);
            if (lane % 4 == 0) down[((u64)slice * g.rows + row) * g.rank + first + lane / 4] = *at<float>(g.scales, slot) * sum;
        }
        __syncwarp();
        if (lane == 0) count_released(const_cast<u32 *>(at<u32>(g.counters, 0)));
    }
}

/// Waits for x Aᵀ and brings the sums of its slices to shared memory. A warp takes four times four values: the lanes share out
/// the slices. All that finish come and go together.
__device__ __forceinline__ void gather(const Arguments &g, u32 warp, u32 lane, float *down) {
    const u32 slices = (g.inputs + SLICE - 1) / SLICE, pieces = g.rows * g.rank / 4;
    u32 *counters = const_cast<u32 *>(at<u32>(g.counters, 0));
    wait_for(counters, g.rows * g.rank / RANKS * slices);
    __syncwarp();
    for (u32 first = warp * 4; first < pieces; first += FINISHERS * 4) {
        const u32 piece = first + lane % 4;
        float4 sum = make_float4(0, 0, 0, 0);
        if (piece < pieces)
#pragma unroll 4
            for (u32 slice = lane / 4; slice < slices; slice += 8) {
                const float4 part = load_fresh(at<float4>(g.down, (u64)slice * pieces + piece));
                sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
            }
#pragma unroll
        for (u32 mask = 4; mask < WARP; mask *= 2) {
            sum.x += __shfl_xor_sync(~0u, sum.x, mask), sum.y += __shfl_xor_sync(~0u, sum.y, mask);
            sum.z += __shfl_xor_sync(~0u, sum.z, mask), sum.w += __shfl_xor_sync(~0u, sum.w, mask);
        }
        if (lane < 4 && piece < pieces) reinterpret_cast<float4 *>(down)[piece] = sum;
    }
    finishers_meet();
    // The last block that has x Aᵀ leaves the counters as they were.
    if (warp == 0 && lane == 0 && count(counters + 1) == gridDim.x - 1) counters[0] = counters[1] = 0;
}

/// A pair of outputs of one row that a lane finishes.
struct Target {
    u32 row, column, slot;
    bool exists;
    Target() = default;
    __device__ __forceinline__ Target(const Arguments &g, u32 index) {
        const u32 pairs = g.columns / 2;
        row = index / pairs, column = index % pairs * 2;
        exists = row < g.rows && blockIdx.x * g.columns + column < g.outputs;
        slot = exists && g.rank ? *at<u32>(g.slots, row) : ~0u;
    }
    __device__ __forceinline__ bool has_adapter(const Arguments &g) const { return slot < g.slot_count; }
};

/// Eight ranks of B for each pair of outputs of a lane.
template <typename T, typename S> struct Up {
    uint4 bits[S::PAIRS][2];

    __device__ __forceinline__ void fetch(const Arguments &g, const Target (&targets)[S::PAIRS], u32 rank) {
        if (rank >= g.rank) return;
#pragma unroll
        for (u32 i = 0; i < S::PAIRS; i++) {
            if (!targets[i].has_adapter(g)) continue;
            const u64 output = (u64)targets[i].slot * g.outputs + blockIdx.x * g.columns + targets[i].column;
            const T *from = at<T>(g.b, output * g.rank + rank);
            bits[i][0] = load_16(from), bits[i][1] = load_16(from + g.rank);
        }
    }
    __device__ __forceinline__ void multiply(const Arguments &g, const Target (&targets)[S::PAIRS], u32 rank, const float *down,
                                             float2 (&sums)[S::PAIRS]) const {
        if (rank >= g.rank) return;
#pragma unroll
        for (u32 i = 0; i < S::PAIRS; i++) {
            if (!targets[i].has_adapter(g)) continue;
            float values[RANKS];
#pragma unroll
            for (u32 j = 0; j < RANKS; j++) values[j] = down[targets[i].row * g.rank + rank + j];
            sums[i].x = dot<T>(values, bits[i][0], sums[i].x), sums[i].y = dot<T>(values, bits[i][1], sums[i].y);
        }
    }
};

/// What the adapters add to the pairs of a lane, while the others multiply.
template <typename T, typename S>
__device__ __forceinline__ void adapt(const Arguments &g, u32 warp, u32 lane, const Target (&targets)[S::PAIRS], float *down,
                                      float2 (&sums)[S::PAIRS]) {
    Up<T, S> even, odd;
    project<T>(g, warp, lane);
    even.fetch(g, targets, 0), odd.fetch(g, targets, RANKS);
    gather(g, warp, lane, down);
    for (u32 rank = 0; rank < g.rank; rank += 2 * RANKS) {
        even.multiply(g, targets, rank, down, sums), even.fetch(g, targets, rank + 2 * RANKS);
        odd.multiply(g, targets, rank + RANKS, down, sums), odd.fetch(g, targets, rank + 3 * RANKS);
    }
}

template <typename T, typename S>
__device__ __forceinline__ void finish(const Arguments &g, Barriers barriers, u32 warp, u32 lane, const float *products, float *down) {
    float2 sums[S::PAIRS] = {};
    Target targets[S::PAIRS];
#pragma unroll
    for (u32 i = 0; i < S::PAIRS; i++) targets[i] = Target(g, i * FINISHING + warp * WARP + lane);
    if (g.rank) adapt<T, S>(g, warp, lane, targets, down, sums);
    barrier_wait(barriers.sums(), 0);
#pragma unroll
    for (u32 i = 0; i < S::PAIRS; i++) {
        const Target &target = targets[i];
        if (!target.exists) continue;
#pragma unroll
        for (u32 part = 0; part < S::PARTS; part++) {
            const float *own = products + (part * ROWS + target.row) * g.columns + target.column;
            sums[i].x += own[0], sums[i].y += own[1];
        }
        const u32 output = blockIdx.x * g.columns + target.column;
        if (g.bias) {
            const u32 bias = *at<u32>(g.bias, output / 2);
            sums[i].x += low(bias, T()), sums[i].y += high(bias, T());
        }
        *const_cast<u32 *>(at<u32>(g.y, ((u64)target.row * g.outputs + output) / 2)) = pack<T>(sums[i].x, sums[i].y);
    }
}

/// The block has `columns / COLUMNS · PARTS` warps that multiply, one that loads, and those that finish.
template <typename T, typename S> __device__ __forceinline__ void few_rows(const Arguments &g) {
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, multiplying = g.columns / S::COLUMNS * S::PARTS;
    const u32 memory = (shared_address(dynamic_shared()) + 1023) / 1024 * 1024;
    unsigned char *const start = dynamic_shared() + (memory - shared_address(dynamic_shared()));
    const Plan plan(g.stages, g.columns, S::BOXES, S::PARTS, g.rank);
    float *const sums = reinterpret_cast<float *>(start + plan.sums), *const down = reinterpret_cast<float *>(start + plan.down);
    const Barriers barriers{memory + plan.barriers, g.stages};
    if (threadIdx.x == 0) {
        for (u32 stage = 0; stage < g.stages; stage++) {
            barrier_start(barriers.full(stage), 1);
            barrier_start(barriers.empty(stage), multiplying);
        }
        barrier_start(barriers.sums(), multiplying * WARP);
        barriers_started();
    }
    __syncthreads();
    attention::begin();
    if (warp < multiplying) multiply<T, S>(g, barriers, memory, warp, lane, sums);
    else if (warp > multiplying) finish<T, S>(g, barriers, warp - multiplying - 1, lane, sums, down);
    else if (lane == 0) load_stages<S>(g, barriers, memory);
}

} // namespace lora
