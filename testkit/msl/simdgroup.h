// metal_simdgroup, metal_simdgroup_matrix, the barriers and metal_atomic.
#pragma once
#include "math.h"
#include "runtime.h"

namespace metal {

using msl::Site;

// ------------------------------------------------------------------------------------------------- barriers

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags((int)a | (int)b); }

inline void threadgroup_barrier(mem_flags, Site site = MSL_SITE) { msl::wait(msl::State::at_barrier, site); }
inline void simdgroup_barrier(mem_flags, Site site = MSL_SITE) { msl::post(0, site); }

// ----------------------------------------------------------------------------------------------- reductions

#define MSL_REDUCTION(NAME, VALUE)                                                                             \
    template <class T> inline T NAME(T value, Site site = MSL_SITE) {                                          \
        msl::post(value, site);                                                                                \
        bool first = true;                                                                                     \
        T a{};                                                                                                 \
        for (uint i = 0; i < msl::simd_width; i++) {                                                           \
            if (!msl::takes_part(i)) continue;                                                                 \
            T b = msl::posted_by<T>(i, site);                                                                  \
            a = first ? b : (T)(VALUE);                                                                        \
            first = false;                                                                                     \
        }                                                                                                      \
        return a;                                                                                              \
    }
MSL_REDUCTION(simd_sum, a + b)
MSL_REDUCTION(simd_product, a *b)
MSL_REDUCTION(simd_max, max(a, b))
MSL_REDUCTION(simd_min, min(a, b))
MSL_REDUCTION(simd_and, a &b)
MSL_REDUCTION(simd_or, a | b)
MSL_REDUCTION(simd_xor, a ^ b)
#undef MSL_REDUCTION
inline bool simd_any(bool value, Site site = MSL_SITE) { return simd_or((int)value, site); }
inline bool simd_all(bool value, Site site = MSL_SITE) { return simd_and((int)value, site); }

template <class T> inline T simd_prefix_inclusive_sum(T value, Site site = MSL_SITE) {
    msl::post(value, site);
    T sum{};
    for (uint i = 0; i <= msl::lane_in_simdgroup(); i++)
        if (msl::takes_part(i)) sum += msl::posted_by<T>(i, site);
    return sum;
}
template <class T> inline T simd_prefix_exclusive_sum(T value, Site site = MSL_SITE) {
    msl::post(value, site);
    T sum{};
    for (uint i = 0; i < msl::lane_in_simdgroup(); i++)
        if (msl::takes_part(i)) sum += msl::posted_by<T>(i, site);
    return sum;
}

// ------------------------------------------------------------------------------------- values of other lanes

template <class T> inline T simd_shuffle(T value, ushort from, Site site = MSL_SITE) {
    msl::post(value, site);
    return msl::posted_by<T>(from, site);
}
template <class T> inline T simd_broadcast(T value, ushort from, Site site = MSL_SITE) {
    return simd_shuffle(value, from, site);
}
template <class T> inline T simd_broadcast_first(T value, Site site = MSL_SITE) {
    msl::post(value, site);
    return msl::posted_by<T>(__builtin_ctz(msl::lane->present), site);
}
template <class T> inline T simd_shuffle_xor(T value, ushort mask, Site site = MSL_SITE) {
    return simd_shuffle(value, (ushort)(msl::lane_in_simdgroup() ^ mask), site);
}
// Past the end of the SIMD group a lane keeps its own value.
template <class T> inline T simd_shuffle_down(T value, ushort distance, Site site = MSL_SITE) {
    uint from = msl::lane_in_simdgroup() + distance;
    return simd_shuffle(value, (ushort)(from < msl::simd_width ? from : msl::lane_in_simdgroup()), site);
}
template <class T> inline T simd_shuffle_up(T value, ushort distance, Site site = MSL_SITE) {
    uint own = msl::lane_in_simdgroup();
    return simd_shuffle(value, (ushort)(distance <= own ? own - distance : own), site);
}

// ------------------------------------------------------------------------------------------ 8×8 matrices

// Each lane holds two neighbouring elements of one row, in Apple's layout.
inline uint matrix_row(uint lane) { return (lane / 4 & 4) + lane / 2 % 4; }
inline uint matrix_column(uint lane) { return (lane / 4 & 2) * 2 + lane % 2 * 2; }
inline uint matrix_lane(uint row, uint column) {
    return (row & 4) << 2 | (column & 4) << 1 | (row & 3) << 1 | (column & 2) >> 1;
}

template <class T, int ROWS, int COLUMNS> struct simdgroup_matrix {
    static_assert(ROWS == 8 && COLUMNS == 8, "simdgroup matrices are 8x8");
    vec<T, 2> elements;

    simdgroup_matrix() = default;
    explicit simdgroup_matrix(T diagonal) {
        uint row = matrix_row(msl::lane_in_simdgroup()), column = matrix_column(msl::lane_in_simdgroup());
        for (uint i = 0; i < 2; i++) elements[i] = row == column + i ? diagonal : T(0);
    }
    vec<T, 2> &thread_elements() { return elements; }
    const vec<T, 2> &thread_elements() const { return elements; }
};
using simdgroup_float8x8 = simdgroup_matrix<float, 8, 8>;
using simdgroup_half8x8 = simdgroup_matrix<half, 8, 8>;
using simdgroup_bfloat8x8 = simdgroup_matrix<bfloat, 8, 8>;

template <class T, int ROWS, int COLUMNS> inline simdgroup_matrix<T, ROWS, COLUMNS> make_filled_simdgroup_matrix(T value) {
    simdgroup_matrix<T, ROWS, COLUMNS> matrix;
    matrix.elements = value;
    return matrix;
}

// Where element `i` of this lane is, relative to the pointer that is loaded from or stored to.
inline ulong matrix_offset(uint i, ulong elements_per_row, ulong2 origin, bool transposed) {
    ulong row = matrix_row(msl::lane_in_simdgroup()), column = matrix_column(msl::lane_in_simdgroup()) + i;
    return transposed ? (origin.y + column) * elements_per_row + origin.x + row
                      : (origin.y + row) * elements_per_row + origin.x + column;
}
template <class T, class P>
inline void simdgroup_load(simdgroup_matrix<T, 8, 8> &matrix, P *from, ulong elements_per_row = 8, ulong2 origin = 0,
                           bool transposed = false) {
    static_assert(std::is_same_v<msl::loaded_t<P>, T>, "simdgroup_load from elements of another type");
    for (uint i = 0; i < 2; i++) matrix.elements[i] = from[matrix_offset(i, elements_per_row, origin, transposed)];
}
template <class T, class P>
inline void simdgroup_store(const simdgroup_matrix<T, 8, 8> &matrix, P *to, ulong elements_per_row = 8, ulong2 origin = 0,
                            bool transposed = false) {
    static_assert(std::is_same_v<msl::loaded_t<P>, T>, "simdgroup_store to elements of another type");
    for (uint i = 0; i < 2; i++) to[matrix_offset(i, elements_per_row, origin, transposed)] = matrix.elements[i];
}

template <class D, class A, class B, class C>
inline void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8> &d, const simdgroup_matrix<A, 8, 8> &a,
                                          const simdgroup_matrix<B, 8, 8> &b, const simdgroup_matrix<C, 8, 8> &c,
                                          Site site = MSL_SITE) {
    struct Factors {
        vec<A, 2> a;
        vec<B, 2> b;
    };
    msl::post(Factors{a.elements, b.elements}, site);
    if (msl::lane->present != ~0u) msl::fail("simdgroup_multiply at line %u without all 32 lanes", msl::line(site));
    uint row = matrix_row(msl::lane_in_simdgroup()), column = matrix_column(msl::lane_in_simdgroup());
    float sums[2] = {(float)c.elements[0], (float)c.elements[1]};
    for (uint k = 0; k < 8; k++) {
        float left = (float)msl::posted_by<Factors>(matrix_lane(row, k), site).a[k & 1];
        vec<B, 2> right = msl::posted_by<Factors>(matrix_lane(k, column), site).b;
        for (uint i = 0; i < 2; i++) sums[i] += left * (float)right[i];
    }
    for (uint i = 0; i < 2; i++) d.elements[i] = (D)sums[i];
}
template <class D, class A, class B>
inline void simdgroup_multiply(simdgroup_matrix<D, 8, 8> &d, const simdgroup_matrix<A, 8, 8> &a,
                               const simdgroup_matrix<B, 8, 8> &b, Site site = MSL_SITE) {
    simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<D, 8, 8>(D(0)), site);
}

// -------------------------------------------------------------------------------------------------- atomics

enum memory_order { memory_order_relaxed };

// Lanes never run at the same time, so plain reads and writes are atomic here.
template <class T> struct atomic {
    using Element = T;
    T value;
};
using atomic_uint = atomic<uint>;
using atomic_int = atomic<int>;
using atomic_float = atomic<float>;

template <class A> using atomic_element = typename msl::loaded_t<A>::Element;

template <class A> inline atomic_element<A> atomic_load_explicit(A *at, memory_order) { return at->value; }
template <class A, class U> inline void atomic_store_explicit(A *at, U value, memory_order) {
    at->value = (atomic_element<A>)value;
}
#define MSL_ATOMIC(NAME, VALUE)                                                                                \
    template <class A, class U> inline atomic_element<A> NAME(A *at, U operand, memory_order) {                \
        atomic_element<A> a = at->value, b = (atomic_element<A>)operand;                                       \
        at->value = (VALUE);                                                                                   \
        return a;                                                                                              \
    }
MSL_ATOMIC(atomic_exchange_explicit, b)
MSL_ATOMIC(atomic_fetch_add_explicit, a + b)
MSL_ATOMIC(atomic_fetch_sub_explicit, a - b)
MSL_ATOMIC(atomic_fetch_max_explicit, max(a, b))
MSL_ATOMIC(atomic_fetch_min_explicit, min(a, b))
MSL_ATOMIC(atomic_fetch_or_explicit, a | b)
MSL_ATOMIC(atomic_fetch_and_explicit, a &b)
MSL_ATOMIC(atomic_fetch_xor_explicit, a ^ b)
#undef MSL_ATOMIC
template <class A, class U>
inline bool atomic_compare_exchange_weak_explicit(A *at, atomic_element<A> *expected, U desired, memory_order, memory_order) {
    atomic_element<A> found = at->value;
    bool equal = found == *expected;
    if (equal) at->value = (atomic_element<A>)desired;
    *expected = found;
    return equal;
}

} // namespace metal
