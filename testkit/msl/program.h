// The program around the kernels: reads one launch from standard input, runs it, answers on standard output.
//
// The launch: order and seed, threadgroups, threads, the kernel's name, the sizes of threadgroup memory, the
// regions of memory, the buffers (region, offset, length, whether it may be written), the regions' contents.
// The answer: 0, then every region that was written, after its number; or 1 and a message, when a rule of
// Metal was broken; or 2 and a message, when the launch does not fit the kernel. All numbers are 64 bits wide.
#pragma once
#include "simdgroup.h"

namespace msl {

enum Answer : uint64_t { done, broken_rule, wrong_launch };

inline void answer(const void *bytes, size_t count) {
    if (fwrite(bytes, 1, count, stdout) != count) _Exit(3);
}
inline void answer(uint64_t number) { answer(&number, sizeof number); }

[[noreturn]] inline void give_up(Answer kind, const char *format, va_list values) {
    char message[1024];
    int length = vsnprintf(message, sizeof message, format, values);
    answer(kind);
    answer(message, std::min<size_t>(length, sizeof message - 1));
    fflush(stdout);
    _Exit(0);
}
inline void fail(const char *format, ...) {
    va_list values;
    va_start(values, format);
    give_up(broken_rule, format, values);
}
[[noreturn]] __attribute__((format(printf, 1, 2))) inline void refuse(const char *format, ...) {
    va_list values;
    va_start(values, format);
    give_up(wrong_launch, format, values);
}

// ------------------------------------------------------------------------------------------------- the launch

struct Buffer {
    uint64_t region, offset, bytes, writable;
    char *start = nullptr;
};

struct Launch {
    Order order;
    uint64_t groups[3], threads[3];
    std::string function;
    std::vector<uint64_t> threadgroup_bytes;
    std::vector<uint64_t> region_bytes;
    std::vector<uint64_t> region_shifts; // the address modulo 16 that the region had at the caller
    std::vector<char *> regions;
    std::vector<Buffer> buffers;
};

inline void read(void *to, size_t bytes) {
    if (fread(to, 1, bytes, stdin) != bytes) refuse("the launch is cut short");
}
inline uint64_t read_number() {
    uint64_t number;
    read(&number, sizeof number);
    return number;
}

inline Launch read_launch() {
    Launch launch;
    launch.order.kind = (Order::Kind)read_number();
    launch.order.state = read_number() * 2 + 1;
    for (uint64_t &number : launch.groups) number = read_number();
    for (uint64_t &number : launch.threads) number = read_number();
    launch.function.resize(read_number());
    read(launch.function.data(), launch.function.size());
    launch.threadgroup_bytes.resize(read_number());
    for (uint64_t &bytes : launch.threadgroup_bytes) bytes = read_number();
    uint64_t regions = read_number();
    for (uint64_t i = 0; i < regions; i++) {
        launch.region_bytes.push_back(read_number());
        launch.region_shifts.push_back(read_number());
    }
    launch.buffers.resize(read_number());
    for (Buffer &buffer : launch.buffers) {
        buffer.region = read_number();
        buffer.offset = read_number();
        buffer.bytes = read_number();
        buffer.writable = read_number();
    }
    for (uint64_t i = 0; i < regions; i++) {
        // Ends where the region ends, so that the address sanitizer sees the first byte past it.
        char *memory = (char *)malloc(launch.region_shifts[i] + launch.region_bytes[i]) + launch.region_shifts[i];
        read(memory, launch.region_bytes[i]);
        launch.regions.push_back(memory);
    }
    for (Buffer &buffer : launch.buffers) buffer.start = launch.regions[buffer.region] + buffer.offset;
    return launch;
}

// ------------------------------------------------------------------------------------------- kernels' parameters

enum Builtin : uint {
    thread_position_in_grid,
    thread_position_in_threadgroup,
    threadgroup_position_in_grid,
    threads_per_grid,
    threads_per_threadgroup,
    dispatch_threads_per_threadgroup,
    threadgroups_per_grid,
    thread_index_in_threadgroup,
    thread_index_in_simdgroup,
    simdgroup_index_in_threadgroup,
    simdgroups_per_threadgroup,
    threads_per_simdgroup,
    builtins,
};

struct Binding {
    enum Kind { buffer, threadgroup_memory, builtin } kind;
    uint index;
};

// What one thread of a kernel sees.
struct Thread {
    const Launch *launch;
    char *const *threadgroup;
    metal::uint3 builtin[builtins];
};

struct Parameter {
    Binding binding;
    bool is_written, is_reference, is_memory;
    size_t bytes; // of what a reference refers to
};

struct Kernel {
    std::string name;
    std::vector<Parameter> parameters;
    void (*call)(const Kernel &, const Thread &) = nullptr;
    void (*function)() = nullptr;
};

inline std::vector<Kernel> &kernels() {
    static std::vector<Kernel> all;
    return all;
}

template <class A> Parameter describe(Binding binding) {
    using Target = std::remove_pointer_t<std::remove_reference_t<A>>;
    constexpr bool is_memory = std::is_pointer_v<A> || std::is_reference_v<A>;
    size_t bytes = 0;
    if constexpr (std::is_reference_v<A>) bytes = sizeof(Target);
    return {binding, is_memory && !std::is_const_v<Target>, std::is_reference_v<A>, is_memory, bytes};
}

template <class A> A argument(Binding binding, const Thread &thread) {
    if constexpr (std::is_pointer_v<A> || std::is_reference_v<A>) {
        using Target = std::remove_pointer_t<std::remove_reference_t<A>>;
        void *start = binding.kind == Binding::buffer ? thread.launch->buffers[binding.index].start
                                                      : thread.threadgroup[binding.index];
        if constexpr (std::is_reference_v<A>)
            return *(Target *)start;
        else
            return (Target *)start;
    } else {
        metal::uint3 value = thread.builtin[binding.index];
        std::remove_cv_t<A> result{};
        if constexpr (shape<std::remove_cv_t<A>>::is_vector)
            for (int i = 0; i < shape<std::remove_cv_t<A>>::count; i++) result[i] = (element_of<A>)value[i];
        else
            result = (std::remove_cv_t<A>)value.x;
        return result;
    }
}

template <class... A, size_t... I>
void call(void (*function)(A...), const Kernel &kernel, const Thread &thread, std::index_sequence<I...>) {
    function(argument<A>(kernel.parameters[I].binding, thread)...);
}

struct Registered {
    template <class... A> Registered(const char *name, void (*function)(A...), std::vector<Binding> bindings) {
        static_assert(sizeof...(A) > 0, "a kernel without parameters does nothing");
        Kernel kernel;
        kernel.name = name;
        size_t next = 0;
        (kernel.parameters.push_back(describe<A>(bindings[next++])), ...);
        kernel.function = (void (*)())function;
        kernel.call = [](const Kernel &kernel, const Thread &thread) {
            msl::call((void (*)(A...))kernel.function, kernel, thread, std::index_sequence_for<A...>{});
        };
        kernels().push_back(std::move(kernel));
    }
};

inline const Kernel &find_kernel(const std::string &name) {
    std::string names;
    for (const Kernel &kernel : kernels()) {
        if (kernel.name == name) return kernel;
        names += (names.empty() ? "" : ", ") + kernel.name;
    }
    refuse("there is no kernel %s; there are: %s", name.c_str(), names.c_str());
}

// ------------------------------------------------------------------------------------ whether the launch fits

inline void check_buffer(const Kernel &kernel, const Parameter &parameter, const Launch &launch) {
    const char *name = kernel.name.c_str();
    uint index = parameter.binding.index;
    if (index >= launch.buffers.size())
        refuse("%s has a buffer %u, but %zu buffers were given", name, index, launch.buffers.size());
    const Buffer &buffer = launch.buffers[index];
    if (parameter.is_written && !buffer.writable)
        refuse("%s writes to buffer %u, which was given as bytes to read", name, index);
    if (parameter.is_reference && parameter.bytes != buffer.bytes)
        refuse("buffer %u of %s is one value of %zu bytes, but %zu bytes were given", index, name, parameter.bytes,
               (size_t)buffer.bytes);
}

inline void check(const Kernel &kernel, const Launch &launch) {
    const char *name = kernel.name.c_str();
    std::vector<bool> used(launch.buffers.size()), sized(launch.threadgroup_bytes.size());
    for (const Parameter &parameter : kernel.parameters) {
        uint index = parameter.binding.index;
        if (parameter.binding.kind == Binding::buffer) {
            check_buffer(kernel, parameter, launch);
            used[index] = true;
        } else if (parameter.binding.kind == Binding::threadgroup_memory) {
            if (index >= sized.size()) refuse("%s has threadgroup memory %u, whose size was not given", name, index);
            sized[index] = true;
        }
    }
    for (size_t i = 0; i < used.size(); i++)
        if (!used[i]) refuse("%zu buffers were given, but %s has no buffer %zu", used.size(), name, i);
    for (size_t i = 0; i < sized.size(); i++)
        if (!sized[i]) refuse("%zu sizes of threadgroup memory were given, but %s has no threadgroup memory %zu", sized.size(), name, i);
    uint64_t threads = launch.threads[0] * launch.threads[1] * launch.threads[2];
    if (threads == 0 || threads > largest_threadgroup)
        refuse("%s was launched with %zu threads in a threadgroup; 1 to %u are possible", name, (size_t)threads, largest_threadgroup);
    uint64_t shared = 0;
    for (uint64_t bytes : launch.threadgroup_bytes) shared += bytes;
    if (shared > 32768) refuse("%s was launched with %zu bytes of threadgroup memory; 32768 are possible", name, (size_t)shared);
}

// -------------------------------------------------------------------------------------------------- the launch

// Memory that a kernel reads before it wrote to it is no zero: as a float of any width it is not a number.
constexpr int unwritten = 0xff;

// Where the variables in threadgroup memory are; the linker sets both ends.
extern "C" char __start_msl_threadgroup[] __attribute__((weak));
extern "C" char __stop_msl_threadgroup[] __attribute__((weak));
inline void forget_threadgroup_variables() {
    if (__start_msl_threadgroup)
        memset(__start_msl_threadgroup, unwritten, __stop_msl_threadgroup - __start_msl_threadgroup);
}

struct GroupRun {
    const Kernel &kernel;
    const Launch &launch;
    metal::uint3 position, groups, threads;
    std::vector<char *> memory;
};

inline void run_thread(void *context, uint index) {
    const GroupRun &run = *(const GroupRun *)context;
    metal::uint3 size = run.threads;
    metal::uint3 position = {index % size.x, index / size.x % size.y, index / size.x / size.y};
    uint count = size.x * size.y * size.z;
    Thread thread{&run.launch, run.memory.data(), {}};
    thread.builtin[thread_position_in_grid] = run.position * size + position;
    thread.builtin[thread_position_in_threadgroup] = position;
    thread.builtin[threadgroup_position_in_grid] = run.position;
    thread.builtin[threads_per_grid] = run.groups * size;
    thread.builtin[threads_per_threadgroup] = size;
    thread.builtin[dispatch_threads_per_threadgroup] = size;
    thread.builtin[threadgroups_per_grid] = run.groups;
    thread.builtin[thread_index_in_threadgroup] = index;
    thread.builtin[thread_index_in_simdgroup] = index % simd_width;
    thread.builtin[simdgroup_index_in_threadgroup] = index / simd_width;
    thread.builtin[simdgroups_per_threadgroup] = (count + simd_width - 1) / simd_width;
    thread.builtin[threads_per_simdgroup] = simd_width;
    run.kernel.call(run.kernel, thread);
}

inline void run(const Kernel &kernel, Launch &launch) {
    metal::uint3 groups = {(uint)launch.groups[0], (uint)launch.groups[1], (uint)launch.groups[2]};
    metal::uint3 threads = {(uint)launch.threads[0], (uint)launch.threads[1], (uint)launch.threads[2]};
    std::vector<uint> turns = launch.order.start(groups.x * groups.y * groups.z);
    launch.order.arrange(turns);
    for (uint turn : turns) {
        metal::uint3 position = {turn % groups.x, turn / groups.x % groups.y, turn / groups.x / groups.y};
        GroupRun context{kernel, launch, position, groups, threads, {}};
        for (uint64_t bytes : launch.threadgroup_bytes)
            context.memory.push_back((char *)memset(malloc(bytes), unwritten, bytes));
        forget_threadgroup_variables();
        run_group(threads.x * threads.y * threads.z, launch.order, run_thread, &context);
        for (char *memory : context.memory) free(memory);
    }
}

inline void answer_with_results(const Kernel &kernel, const Launch &launch) {
    std::vector<bool> written(launch.regions.size());
    for (const Parameter &parameter : kernel.parameters)
        if (parameter.binding.kind == Binding::buffer && parameter.is_written)
            written[launch.buffers[parameter.binding.index].region] = true;
    answer(done);
    for (size_t i = 0; i < written.size(); i++) {
        if (!written[i]) continue;
        answer(i);
        answer(launch.regions[i], launch.region_bytes[i]);
    }
    fflush(stdout);
}

} // namespace msl

int main() {
    using namespace msl;
    alarm(MSL_TIME_LIMIT_S);
    Launch launch = read_launch();
    const Kernel &kernel = find_kernel(launch.function);
    check(kernel, launch);
    run(kernel, launch);
    answer_with_results(kernel, launch);
    _Exit(0);
}
