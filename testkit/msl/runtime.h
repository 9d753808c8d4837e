// The threads of one threadgroup, as fibers on one host thread.
//
// A lane (a thread of the kernel) runs until it waits: at a SIMD-group function, for the other lanes of its
// SIMD group, or at a threadgroup barrier. The order in which the lanes run in between is chosen by the
// caller, so that what depends on it gives different results in different orders.
#pragma once
#include "types.h"

#include <algorithm>
#include <cstdarg>
#include <string>
#include <sys/mman.h>
#include <unistd.h>

namespace msl {

constexpr uint simd_width = 32;
constexpr uint largest_threadgroup = 1024;
constexpr size_t largest_value = 64;
constexpr size_t stack_bytes = 256 * 1024;
constexpr size_t guard_bytes = 16 * 1024;

// ------------------------------------------------------------------------------------------------- failures

// Ends the program; the message is its answer. See `program.h`.
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Where in the Metal source: line and column, so that two calls on one line (from one macro) differ.
using Site = uint64_t;
#define MSL_SITE ((uint64_t)__builtin_LINE() << 32 | (uint64_t)__builtin_COLUMN())
inline uint line(Site site) { return (uint)(site >> 32); }

// ---------------------------------------------------------------------------------------------------- order

struct Order {
    enum Kind : uint64_t { forward, backward, shuffled };
    Kind kind = forward;
    uint64_t state = 0;

    uint64_t random() { // xorshift64*; the state is never zero
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return state * 0x2545F4914F6CDD1Dull >> 33;
    }
    // Puts the numbers into the order of the next round.
    void arrange(std::vector<uint> &numbers) {
        if (kind == shuffled)
            for (size_t i = numbers.size(); i > 1; i--) std::swap(numbers[i - 1], numbers[random() % i]);
    }
    std::vector<uint> start(uint count) {
        std::vector<uint> numbers(count);
        for (uint i = 0; i < count; i++) numbers[i] = kind == backward ? count - 1 - i : i;
        return numbers;
    }
};

// --------------------------------------------------------------------------------------------------- fibers

enum class State { running, in_simd_function, at_barrier, finished };

struct alignas(16) Value {
    unsigned char bytes[largest_value];
};

struct Lane {
    void *stack_pointer = nullptr;
    State state = State::running;
    Site site = 0;
    uint index = 0;
    uint32_t present = 0;             // the lanes of its SIMD group that take part in the last function
    const Value *gathered = nullptr;  // their values
    Value posted;
};

struct Group {
    std::vector<Lane> lanes;
    std::vector<Value> gathered; // per lane: what it posted to the last SIMD-group function
    void *scheduler = nullptr;
    void (*body)(void *, uint) = nullptr;
    void *context = nullptr;
};

inline Group group;
inline Lane *lane = nullptr;

#if defined(__x86_64__)
// Saves the registers that a call preserves on the running stack, and goes on where `to` had done so.
extern "C" void msl_switch(void **save, void *to);
asm(".text\n.globl msl_switch\nmsl_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");
inline void *first_frame(char *top, void (*entry)()) {
    void **frame = (void **)(top - 64);
    *--frame = nullptr; // the return address of `entry`, which never returns
    *--frame = (void *)entry;
    for (int i = 0; i < 6; i++) *--frame = nullptr;
    return frame;
}
#elif defined(__aarch64__)
extern "C" void msl_switch(void **save, void *to);
asm(".text\n.globl msl_switch\nmsl_switch:\n"
    "sub sp,sp,#160\n"
    "stp x19,x20,[sp,#0]\nstp x21,x22,[sp,#16]\nstp x23,x24,[sp,#32]\nstp x25,x26,[sp,#48]\nstp x27,x28,[sp,#64]\n"
    "stp x29,x30,[sp,#80]\nstp d8,d9,[sp,#96]\nstp d10,d11,[sp,#112]\nstp d12,d13,[sp,#128]\nstp d14,d15,[sp,#144]\n"
    "mov x9,sp\nstr x9,[x0]\nmov sp,x1\n"
    "ldp x19,x20,[sp,#0]\nldp x21,x22,[sp,#16]\nldp x23,x24,[sp,#32]\nldp x25,x26,[sp,#48]\nldp x27,x28,[sp,#64]\n"
    "ldp x29,x30,[sp,#80]\nldp d8,d9,[sp,#96]\nldp d10,d11,[sp,#112]\nldp d12,d13,[sp,#128]\nldp d14,d15,[sp,#144]\n"
    "add sp,sp,#160\nret\n");
inline void *first_frame(char *top, void (*entry)()) {
    void **frame = (void **)(top - 64 - 160);
    for (int i = 0; i < 20; i++) frame[i] = nullptr;
    frame[11] = (void *)entry; // x30, where `ret` goes
    return frame;
}
#else
#error "Metal kernels run on x86-64 and 64-bit ARM hosts only"
#endif

inline void wait(State state, Site site) {
    lane->state = state;
    lane->site = site;
    msl_switch(&lane->stack_pointer, group.scheduler);
}

inline void enter_lane() {
    group.body(group.context, lane->index);
    wait(State::finished, 0);
    __builtin_unreachable();
}

// A stack per lane, each above pages that cannot be touched.
inline char *stack_top(uint index) {
    static char *stacks = nullptr;
    static uint guarded = 0;
    if (!stacks) {
        void *memory = mmap(nullptr, largest_threadgroup * stack_bytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) fail("no memory for the stacks of %u threads", largest_threadgroup);
        stacks = (char *)memory;
    }
    for (; guarded <= index; guarded++) mprotect(stacks + guarded * stack_bytes, guard_bytes, PROT_NONE);
    return stacks + (index + 1) * stack_bytes;
}

// ------------------------------------------------------------------------------------------------ scheduler

// Lets every SIMD group whose lanes wait at a SIMD-group function go on. Whether there was one.
inline bool finish_simd_functions() {
    bool found = false;
    uint count = (uint)group.lanes.size();
    for (uint start = 0; start < count; start += simd_width) {
        uint end = std::min(count, start + simd_width);
        uint32_t present = 0;
        Site site = 0;
        for (uint i = start; i < end; i++) {
            Lane &member = group.lanes[i];
            if (member.state != State::in_simd_function) continue;
            if (present && member.site != site)
                fail("SIMD-group divergence: lanes of one SIMD group wait at line %u and at line %u", line(site),
                     line(member.site));
            site = member.site;
            present |= 1u << (i - start);
            group.gathered[i] = member.posted;
        }
        if (!present) continue;
        found = true;
        for (uint i = start; i < end; i++) {
            Lane &member = group.lanes[i];
            if (!(present >> (i - start) & 1)) continue;
            member.present = present;
            member.gathered = &group.gathered[start];
            member.state = State::running;
        }
    }
    return found;
}

// Opens the barrier at which all lanes wait. False if all have finished.
inline bool open_barrier() {
    uint waiting = 0, finished = 0;
    Site site = 0;
    for (Lane &member : group.lanes) {
        if (member.state == State::finished) {
            finished++;
            continue;
        }
        if (waiting++ && member.site != site)
            fail("barrier divergence: threads wait at different threadgroup_barriers, line %u and line %u", line(site),
                 line(member.site));
        site = member.site;
    }
    if (!waiting) return false;
    if (finished)
        fail("barrier divergence: the threadgroup_barrier at line %u is not reached by %u of %u threads, which have "
             "returned", line(site), finished, (uint)group.lanes.size());
    for (Lane &member : group.lanes) member.state = State::running;
    return true;
}

// Runs `body(context, thread)` for every thread of one threadgroup.
inline void run_group(uint threads, Order &order, void (*body)(void *, uint), void *context) {
    group.lanes.assign(threads, Lane{});
    group.gathered.resize(threads);
    group.body = body;
    group.context = context;
    for (uint i = 0; i < threads; i++) {
        group.lanes[i].index = i;
        group.lanes[i].stack_pointer = first_frame(stack_top(i), enter_lane);
    }
    std::vector<uint> turns = order.start(threads);
    do {
        do {
            order.arrange(turns);
            for (uint i : turns) {
                lane = &group.lanes[i];
                if (lane->state == State::running) msl_switch(&group.scheduler, lane->stack_pointer);
            }
        } while (finish_simd_functions());
    } while (open_barrier());
}

// --------------------------------------------------------------------------- what SIMD-group functions are made of

inline uint lane_in_simdgroup() { return lane->index % simd_width; }
inline bool takes_part(uint other) { return other < simd_width && lane->present >> other & 1; }

// Waits until every lane of the SIMD group that gets here has posted its value.
template <class T> inline void post(T value, Site site) {
    static_assert(sizeof(T) <= largest_value, "a value too large for a SIMD-group function");
    memcpy(lane->posted.bytes, &value, sizeof value);
    wait(State::in_simd_function, site);
}

// What another lane has posted.
template <class T> inline T posted_by(uint other, Site site) {
    if (!takes_part(other))
        fail("a SIMD-group function at line %u reads lane %u, which does not take part", line(site), other);
    T value;
    memcpy(&value, lane->gathered[other].bytes, sizeof value);
    return value;
}

} // namespace msl
