// A stand-in for the CUDA compiler's built-ins that runs kernels on a CPU, one fiber per thread.
//
// It checks what a GPU only punishes now and then: every shared byte starts as garbage, warps run in several
// orders (each as far ahead as barriers let it), asynchronous copies happen either at once or as late as the
// rules allow, collective operations must be reached by the whole warp, and a barrier by the whole block.
// Lane layouts of the matrix instructions follow the PTX manual ("Matrix Fragments for mma.m16n8k16",
// "ldmatrix"). It says nothing about speed, occupancy or the precision of a GPU's approximations.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)

struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace emulation {

constexpr unsigned WARP = 32;
constexpr size_t STACK_BYTES = 128 * 1024;
/// Those of a block; the first is that of __syncthreads.
constexpr unsigned NAMED_BARRIERS = 16;

/// How a run resolves what the rules leave open.
struct Schedule {
    bool late_copies = false; // asynchronous copies happen when they are waited for
    int warp_order = 0;       // 0: first warp first, 1: last warp first, else the seed of a shuffle
};

struct Copy {
    void *to;
    const void *from;
    unsigned bytes, filled;
};

struct Fiber {
    void *stack_pointer = nullptr;
    char *stack = nullptr;
    uint3 thread{};
    unsigned index = 0;
    bool done = false;
    const unsigned *waits_for = nullptr; // a generation counter, and its value at arrival
    unsigned generation = 0;
    std::function<bool()> until; // what else it waits for
    bool waits_for_others = false; // what other blocks do
    std::vector<std::vector<Copy>> groups; // committed asynchronous copies
    std::vector<Copy> uncommitted;
};

struct Meeting {
    unsigned arrived = 0, generation = 0;
    int line = 0;
    void *slots[WARP];
};

/// A copy that a barrier in shared memory waits for.
struct BarrierCopy {
    uint32_t barrier, bytes;
    std::function<void()> perform;
};

struct Block {
    uint3 index{};
    std::vector<Fiber> fibers;
    std::vector<Meeting> meetings; // each warp's, the whole block's, and those of the named barriers
    std::vector<BarrierCopy> barrier_copies;
    unsigned threads = 0, live = 0;
    void *scheduler = nullptr;
    const std::function<void()> *body = nullptr;
    char *shared = nullptr;
    size_t shared_bytes = 0;
};

inline std::vector<char *> free_stacks;
inline Schedule schedule;
inline Block block;
inline Fiber *current = nullptr;
inline uint3 block_index, grid_size, block_size;

[[noreturn]] inline void fail(const char *what, int line = 0) {
    fprintf(stderr, "emulation: %s (line %d, block %u %u %u, thread %u)\n", what, line, block_index.x, block_index.y,
            block_index.z, current ? current->index : 0);
    abort();
}

extern "C" void emulation_switch(void **save, void *to);
#if defined(__x86_64__)
asm(".text\n.weak emulation_switch\nemulation_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");
constexpr int SAVED = 6;
#else
#error "emulation_switch is written for x86-64 only"
#endif

inline void leave() { emulation_switch(&current->stack_pointer, block.scheduler); }

/// Until the condition holds. Other blocks run meanwhile only where it is theirs to fulfil.
inline void wait_until(std::function<bool()> condition, bool by_other_blocks = false) {
    if (condition()) return;
    current->until = std::move(condition);
    current->waits_for_others = by_other_blocks;
    leave();
}

inline void wait(Meeting &meeting) {
    current->waits_for = &meeting.generation;
    current->generation = meeting.generation;
    leave();
}

inline void check_line(Meeting &meeting, int line, const char *what) {
    if (meeting.arrived == 0) meeting.line = line;
    if (meeting.line != line) fail(what, line);
}

/// All 32 lanes meet; the last one runs `combine(slots)` for all.
template <class F> inline void collective(void *arguments, int line, F combine) {
    Meeting &meeting = block.meetings[current->index / WARP];
    check_line(meeting, line, "lanes of one warp are at different collective operations");
    meeting.slots[current->index % WARP] = arguments;
    if (++meeting.arrived < WARP) return wait(meeting);
    combine(meeting.slots);
    meeting.arrived = 0;
    meeting.generation++;
}

inline void entry() {
    (*block.body)();
    current->done = true;
    block.live--;
    leave();
    abort();
}

inline void start(unsigned threads) {
    if (block.fibers.size() < threads) block.fibers.resize(threads);
    if (threads % WARP) fail("the block is no whole number of warps");
    block.meetings.assign(threads / WARP + NAMED_BARRIERS, Meeting());
    block.barrier_copies.clear();
    block.index = block_index;
    block.threads = block.live = threads;
    for (unsigned i = 0; i < threads; i++) {
        Fiber &fiber = block.fibers[i];
        if (!fiber.stack && !free_stacks.empty()) fiber.stack = free_stacks.back(), free_stacks.pop_back();
        if (!fiber.stack) fiber.stack = (char *)aligned_alloc(64, STACK_BYTES);
        fiber.index = i;
        fiber.thread = {i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y};
        fiber.done = false;
        fiber.waits_for = nullptr;
        fiber.until = nullptr;
        fiber.groups.clear();
        fiber.uncommitted.clear();
        void **top = (void **)(fiber.stack + STACK_BYTES - 64);
        *--top = nullptr;
        *--top = (void *)entry;
        for (int k = 0; k < SAVED; k++) *--top = nullptr;
        fiber.stack_pointer = top;
    }
}

inline bool run_lanes(unsigned warp) {
    bool progress = false;
    for (unsigned lane = 0; lane < WARP; lane++) {
        Fiber &fiber = block.fibers[warp * WARP + lane];
        if (fiber.done || (fiber.waits_for && *fiber.waits_for == fiber.generation)) continue;
        if (fiber.until && !fiber.until()) continue;
        fiber.waits_for = nullptr;
        fiber.until = nullptr;
        current = &fiber;
        emulation_switch(&block.scheduler, fiber.stack_pointer);
        progress = true;
    }
    return progress;
}

/// Runs the block's threads as far as they come; says whether all of them returned.
inline bool run_block(const std::function<void()> &body) {
    block.body = &body;
    block_index = block.index;
    unsigned threads = block.threads, warps = threads / WARP;
    uint64_t random = schedule.warp_order * 0x9E3779B97F4A7C15ull + 1;
    while (block.live) {
        bool progress = false;
        for (unsigned i = 0; i < warps; i++) {
            unsigned warp = schedule.warp_order == 0 ? i : warps - 1 - i;
            if (schedule.warp_order > 1) {
                random = random * 6364136223846793005ull + 1442695040888963407ull;
                progress |= run_lanes((random >> 33) % warps);
                progress |= run_lanes(warp);
                continue;
            }
            while (run_lanes(warp)) progress = true;
        }
        if (progress) continue;
        for (unsigned i = 0; i < threads; i++)
            if (block.fibers[i].until && block.fibers[i].waits_for_others) return false;
        fail("deadlock: some threads wait for others that returned or wait elsewhere");
    }
    for (unsigned i = 0; i < threads; i++)
        if (!block.fibers[i].uncommitted.empty()) fail("an asynchronous copy was never committed");
    return true;
}

/// Memory that ends at a page nobody may touch.
inline char *guarded(size_t bytes) {
    size_t page = sysconf(_SC_PAGESIZE), whole = (bytes + page - 1) / page * page;
    char *memory = (char *)mmap(nullptr, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) fail("out of memory");
    mprotect(memory + whole, page, PROT_NONE);
    return memory + whole - bytes;
}
inline void release(char *memory, size_t bytes) {
    size_t page = sysconf(_SC_PAGESIZE), whole = (bytes + page - 1) / page * page;
    munmap(memory + bytes - whole, whole + page);
}

/// `kernel<<<grid, threads, shared_bytes>>>` with `body` calling the kernel with its arguments.
inline void launch(dim3 grid, dim3 threads, size_t shared_bytes, const std::function<void()> &body) {
    if (shared_bytes % 16) fail("shared bytes are no multiple of 16");
    grid_size = {grid.x, grid.y, grid.z};
    block_size = {threads.x, threads.y, threads.z};
    std::deque<Block> waiting; // for other blocks
    auto end = [&](Block &ended) {
        release(ended.shared, shared_bytes);
        for (Fiber &fiber : ended.fibers)
            if (fiber.stack) free_stacks.push_back(fiber.stack), fiber.stack = nullptr;
    };
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                block_index = {x, y, z};
                block.shared = guarded(shared_bytes);
                block.shared_bytes = shared_bytes;
                memset(block.shared, 0xFF, shared_bytes);
                start(threads.x * threads.y * threads.z);
                if (run_block(body)) { end(block); continue; }
                waiting.push_back(std::move(block));
                block = Block();
            }
    for (size_t without_progress = 0; !waiting.empty();) {
        block = std::move(waiting.front());
        waiting.pop_front();
        if (run_block(body)) {
            end(block);
            without_progress = 0;
        } else {
            waiting.push_back(std::move(block));
            if (++without_progress > waiting.size()) fail("deadlock: blocks wait for each other");
        }
        if (!waiting.empty()) block = Block();
    }
    current = nullptr;
}

inline void named_barrier(unsigned name, unsigned threads, int line) {
    Meeting &barrier = block.meetings[block.threads / WARP + name];
    check_line(barrier, line, "threads are at different barriers");
    if (++barrier.arrived < threads) return wait(barrier);
    barrier.arrived = 0;
    barrier.generation++;
}

inline void perform(const Copy &copy) {
    memcpy(copy.to, copy.from, copy.filled);
    memset((char *)copy.to + copy.filled, 0, copy.bytes - copy.filled);
}

} // namespace emulation

#define threadIdx (emulation::current->thread)
#define blockIdx emulation::block_index
#define gridDim emulation::grid_size
#define blockDim emulation::block_size

// ------------------------------------------------------------------------------------------- synchronisation

inline void __syncthreads(int line = __builtin_LINE()) {
    using namespace emulation;
    if (block.live != block.threads) fail("a barrier after some threads returned", line);
    named_barrier(0, block.threads, line);
}

inline void __syncwarp(unsigned = ~0u, int line = __builtin_LINE()) {
    emulation::collective(nullptr, line, [](void **) {});
}

template <class T> inline T __shfl_sync(unsigned, T value, int source, int = 32, int line = __builtin_LINE()) {
    struct Arguments { T value, result; int source; } mine{value, value, source};
    emulation::collective(&mine, line, [](void **slots) {
        auto all = (Arguments **)slots;
        for (int lane = 0; lane < 32; lane++) all[lane]->result = all[all[lane]->source & 31]->value;
    });
    return mine.result;
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T value, int with, int = 32, int line = __builtin_LINE()) {
    return __shfl_sync(mask, value, (emulation::current->index % 32) ^ with, 32, line);
}
inline int __any_sync(unsigned, int predicate, int line = __builtin_LINE()) {
    struct Arguments { int value, result; } mine{predicate, 0};
    emulation::collective(&mine, line, [](void **slots) {
        auto all = (Arguments **)slots;
        int any = 0;
        for (int lane = 0; lane < 32; lane++) any |= all[lane]->value != 0;
        for (int lane = 0; lane < 32; lane++) all[lane]->result = any;
    });
    return mine.result;
}

// ------------------------------------------------------------------------------------------------- arithmetic

struct __nv_bfloat16 { uint16_t bits; };
struct __half { uint16_t bits; };

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return {0x7fff};
    return {(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline float __bfloat162float(__nv_bfloat16 value) {
    uint32_t bits = (uint32_t)value.bits << 16;
    float result;
    memcpy(&result, &bits, 4);
    return result;
}
inline __half __float2half_rn(float value) {
    _Float16 half = (_Float16)value;
    __half result;
    memcpy(&result, &half, 2);
    return result;
}
inline float __half2float(__half value) {
    _Float16 half;
    memcpy(&half, &value, 2);
    return (float)half;
}
inline float __fdividef(float a, float b) { return a / b; }
inline unsigned __float_as_uint(float value) { unsigned bits; memcpy(&bits, &value, 4); return bits; }
inline float __uint_as_float(unsigned bits) { float value; memcpy(&value, &bits, 4); return value; }
template <class T> inline T min(T a, T b) { return b < a ? b : a; }
template <class T> inline T max(T a, T b) { return a < b ? b : a; }

// ------------------------------------------------- what `attention/cuda/warp.cuh` writes in PTX on a GPU

namespace emulation {

inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
inline float widen(__half value) { return __half2float(value); }

inline void *shared_pointer(uint32_t address, size_t bytes) {
    if (address + bytes > block.shared_bytes || address % bytes) fail("shared address out of bounds or unaligned");
    return block.shared + address;
}

/// Rows of 8 numbers of 16 bits: lane 8j + r gives the address of row r of matrix j.
inline void ldmatrix(uint32_t (&registers)[4], uint32_t address, bool transposed, int line) {
    struct Arguments { uint32_t address; uint32_t *result; bool transposed; } mine{address, registers, transposed};
    collective(&mine, line, [](void **slots) {
        auto all = (Arguments **)slots;
        uint16_t matrix[4][8][8];
        for (int lane = 0; lane < 32; lane++)
            memcpy(matrix[lane / 8][lane % 8], shared_pointer(all[lane]->address, 16), 16);
        for (int lane = 0; lane < 32; lane++)
            for (int j = 0; j < 4; j++) {
                int row = lane / 4, column = lane % 4 * 2;
                bool turn = all[lane]->transposed;
                uint16_t low = turn ? matrix[j][column][row] : matrix[j][row][column];
                uint16_t high = turn ? matrix[j][column + 1][row] : matrix[j][row][column + 1];
                all[lane]->result[j] = low | (uint32_t)high << 16;
            }
    });
}

/// c[16, 8] += a[16, 16] · b[16, 8]
template <class T> inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int line) {
    struct Arguments { float *c; const uint32_t *a; uint32_t b[2]; } mine{c, a, {b0, b1}};
    collective(&mine, line, [](void **slots) {
        auto all = (Arguments **)slots;
        float left[16][16], right[16][8];
        auto half = [](uint32_t pair, int which) {
            uint16_t bits = pair >> (16 * which);
            T value;
            memcpy((void *)&value, &bits, 2);
            return widen(value);
        };
        for (int lane = 0; lane < 32; lane++)
            for (int j = 0; j < 8; j++) {
                int row = lane / 4 + (j / 2 % 2) * 8, column = lane % 4 * 2 + j % 2 + (j / 4) * 8;
                left[row][column] = half(all[lane]->a[j / 2], j % 2);
                if (j < 4) right[lane % 4 * 2 + j % 2 + (j / 2) * 8][lane / 4] = half(all[lane]->b[j / 2], j % 2);
            }
        for (int lane = 0; lane < 32; lane++)
            for (int j = 0; j < 4; j++) {
                int row = lane / 4 + (j / 2) * 8, column = lane % 4 * 2 + j % 2;
                float sum = all[lane]->c[j];
                for (int k = 0; k < 16; k++) sum += left[row][k] * right[k][column];
                all[lane]->c[j] = sum;
            }
    });
}

inline void copy_async(uint32_t to, const void *from, unsigned bytes, bool valid) {
    Copy copy{shared_pointer(to, bytes), from, bytes, valid ? bytes : 0};
    if ((uintptr_t)from % bytes) fail("unaligned source of an asynchronous copy");
    if (!schedule.late_copies) perform(copy);
    current->uncommitted.push_back(copy);
}
inline void copy_commit() {
    current->groups.push_back(std::move(current->uncommitted));
    current->uncommitted.clear();
}
inline void copy_wait(size_t pending) {
    auto &groups = current->groups;
    while (groups.size() > pending) {
        if (schedule.late_copies)
            for (const Copy &copy : groups.front()) perform(copy);
        groups.erase(groups.begin());
    }
}

// -------------------------------------------------------------- what `lora/cuda/hopper.cuh` writes in PTX on a GPU

/// An mbarrier: a phase ends when all have arrived and all bytes have come.
struct PhaseBarrier {
    uint32_t phase : 1, expected : 12, arrived : 12, is_started : 7; // a block has at most 1024 threads
    int32_t bytes;
};
static_assert(sizeof(PhaseBarrier) == 8);
constexpr uint32_t STARTED = 0x5A; // shared memory starts as 0xFF

inline PhaseBarrier &phase_barrier(uint32_t address) {
    auto &barrier = *(PhaseBarrier *)shared_pointer(address, 8);
    if (barrier.is_started != STARTED) fail("a barrier that nobody has started");
    return barrier;
}
inline void barrier_start(uint32_t address, unsigned count) {
    *(PhaseBarrier *)shared_pointer(address, 8) = {0, count, 0, STARTED, 0};
}
inline void end_phase(PhaseBarrier &barrier) {
    if (barrier.arrived < barrier.expected || barrier.bytes) return;
    barrier.phase ^= 1;
    barrier.arrived = 0;
}
inline void barrier_arrive(uint32_t address) {
    auto &barrier = phase_barrier(address);
    if (++barrier.arrived > barrier.expected) fail("more arrive at a barrier than it was started for");
    end_phase(barrier);
}
inline void barrier_expect(uint32_t address, unsigned bytes) {
    phase_barrier(address).bytes += bytes;
    barrier_arrive(address);
}
/// Late copies come when somebody waits for them.
inline bool has_passed(uint32_t address, unsigned parity) {
    auto &barrier = phase_barrier(address);
    for (size_t i = 0; i < block.barrier_copies.size();) {
        BarrierCopy copy = block.barrier_copies[i];
        if (copy.barrier != address) { i++; continue; }
        block.barrier_copies.erase(block.barrier_copies.begin() + i);
        copy.perform();
        barrier.bytes -= copy.bytes;
        end_phase(barrier);
    }
    return barrier.phase != parity;
}
inline void barrier_wait(uint32_t address, unsigned parity) {
    wait_until([address, parity] { return has_passed(address, parity); });
}

/// Stands for a tensor map: the address of a matrix, its rows and columns, and the rows of a box.
struct MatrixMap {
    uint64_t address, rows, columns, box_rows;
};

/// A box of 64 numbers of 16 bits of each of its rows, spread as CU_TENSOR_MAP_SWIZZLE_128B does it.
inline void copy_box(uint32_t to, const void *map, uint32_t column, uint32_t row, uint32_t barrier) {
    const MatrixMap matrix = *(const MatrixMap *)map;
    if (to % 1024) fail("a box has to begin at a multiple of 1024 bytes");
    if (matrix.address % 16 || matrix.columns * 2 % 16) fail("rows that are no multiple of 16 bytes");
    auto perform = [=] {
        for (uint32_t r = 0; r < matrix.box_rows; r++)
            for (uint32_t c = 0; c < 64; c++) {
                const bool exists = row + r < matrix.rows && column + c < matrix.columns;
                auto from = (const uint16_t *)matrix.address + (row + r) * matrix.columns + column + c;
                *(uint16_t *)shared_pointer(to + r * 128 + (c / 8 ^ r % 8) * 16 + c % 8 * 2, 2) = exists ? *from : 0;
            }
    };
    const uint32_t bytes = matrix.box_rows * 128;
    if (schedule.late_copies) return block.barrier_copies.push_back({barrier, bytes, perform});
    perform();
    phase_barrier(barrier).bytes -= bytes;
    end_phase(phase_barrier(barrier));
}

/// Until other blocks have counted so far.
inline void wait_for(const unsigned *counter, unsigned count) {
    wait_until([counter, count] { return *counter == count; }, true);
}

} // namespace emulation
