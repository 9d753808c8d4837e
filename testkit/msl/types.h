// Metal's scalar, vector and numeric-limit types on the host.
//
// Vectors are clang's own vector types, not classes: the compiler then allows them in every address space,
// with Metal's swizzles. What a class would do with constructors is done by `make<T>(…)`; the translator
// writes it wherever Metal code says `T(…)` and T may be a vector.
#pragma once
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

using uchar = unsigned char;
using ushort = unsigned short;
using uint = unsigned int;
using ulong = unsigned long;
using half = _Float16;
using bfloat = __bf16;

constexpr half operator""h(long double value) { return (half)(float)value; }
constexpr bfloat operator""bf(long double value) { return (bfloat)(float)value; }

namespace metal {

template <class T, int N> using vec = T __attribute__((ext_vector_type(N)));

#define MSL_VECTOR(T, NAME)                                                                                    \
    using NAME##2 = vec<T, 2>;                                                                                 \
    using NAME##3 = vec<T, 3>;                                                                                 \
    using NAME##4 = vec<T, 4>;                                                                                 \
    typedef T packed_##NAME##2 __attribute__((ext_vector_type(2), aligned(alignof(T))));                       \
    typedef T packed_##NAME##4 __attribute__((ext_vector_type(4), aligned(alignof(T))));
MSL_VECTOR(float, float)
MSL_VECTOR(half, half)
MSL_VECTOR(bfloat, bfloat)
MSL_VECTOR(char, char)
MSL_VECTOR(uchar, uchar)
MSL_VECTOR(short, short)
MSL_VECTOR(ushort, ushort)
MSL_VECTOR(int, int)
MSL_VECTOR(uint, uint)
MSL_VECTOR(long, long)
MSL_VECTOR(ulong, ulong)
#undef MSL_VECTOR

using std::conditional;
using std::conditional_t;
using std::enable_if;
using std::enable_if_t;
using std::integral_constant;
using std::is_integral;
using std::is_integral_v;
using std::is_same;
using std::is_same_v;
using std::is_signed_v;
using std::is_unsigned_v;
using std::make_unsigned_t;
using std::remove_cv_t;
using std::remove_reference_t;

template <class T>
constexpr bool is_floating_point_v =
    std::is_floating_point_v<T> || std::is_same_v<T, half> || std::is_same_v<T, bfloat>;
template <class T> struct is_floating_point : std::bool_constant<is_floating_point_v<T>> {};
template <class T> constexpr bool is_arithmetic_v = is_floating_point_v<T> || std::is_integral_v<T>;
template <class T> struct is_arithmetic : std::bool_constant<is_arithmetic_v<T>> {};

template <class T> struct numeric_limits : std::numeric_limits<T> {};
template <class T, uint16_t LOWEST_NORMAL, uint16_t LARGEST, uint16_t INFINITE, uint16_t NOT_A_NUMBER>
struct short_float_limits {
    static constexpr bool is_specialized = true;
    static constexpr bool has_infinity = true;
    static constexpr T min() { return __builtin_bit_cast(T, LOWEST_NORMAL); }
    static constexpr T max() { return __builtin_bit_cast(T, LARGEST); }
    static constexpr T lowest() { return -max(); }
    static constexpr T infinity() { return __builtin_bit_cast(T, INFINITE); }
    static constexpr T quiet_NaN() { return __builtin_bit_cast(T, NOT_A_NUMBER); }
};
template <> struct numeric_limits<half> : short_float_limits<half, 0x0400, 0x7bff, 0x7c00, 0x7e00> {};
template <> struct numeric_limits<bfloat> : short_float_limits<bfloat, 0x0080, 0x7f7f, 0x7f80, 0x7fc0> {};

} // namespace metal

namespace msl {

// Element type and number of elements; a scalar has one.
template <class T> struct shape {
    using element = T;
    static constexpr int count = 1;
    static constexpr bool is_vector = false;
};
template <class T, int N> struct shape<T __attribute__((ext_vector_type(N)))> {
    using element = T;
    static constexpr int count = N;
    static constexpr bool is_vector = true;
};
template <class T> using element_of = typename shape<T>::element;

// The type without its address space: what a value of it is once loaded.
template <class T> struct loaded { using type = std::remove_cv_t<T>; };
template <class T> struct loaded<__attribute__((address_space(1))) T> : loaded<T> {};
template <class T> struct loaded<const __attribute__((address_space(1))) T> : loaded<T> {};
template <class T> struct loaded<const __attribute__((address_space(2))) T> : loaded<T> {};
template <class T> struct loaded<__attribute__((address_space(3))) T> : loaded<T> {};
template <class T> struct loaded<const __attribute__((address_space(3))) T> : loaded<T> {};
template <class T> using loaded_t = typename loaded<T>::type;

// C++ has no cast between the two 16-bit floats.
template <class To, class From> constexpr To convert_scalar(From value) {
    if constexpr ((std::is_same_v<To, half> && std::is_same_v<From, bfloat>) ||
                  (std::is_same_v<To, bfloat> && std::is_same_v<From, half>))
        return (To)(float)value;
    else
        return static_cast<To>(value);
}

template <class To, class From> inline void append(To &to, int &at, const From &value) {
    using Element = element_of<To>;
    if constexpr (shape<From>::is_vector)
        for (int i = 0; i < shape<From>::count; i++) to[at++] = convert_scalar<Element>(value[i]);
    else
        to[at++] = convert_scalar<Element>(value);
}

template <class... T> constexpr int count_of = (0 + ... + shape<T>::count);

} // namespace msl

// `T(…)` and `static_cast<T>(…)` as Metal means them: a scalar fills a vector, vectors convert element by
// element, parts are joined.
template <class To, class... From> constexpr To make(From... values) {
    using namespace msl;
    if constexpr (shape<To>::is_vector && sizeof...(From) == 0) {
        return To(0);
    } else if constexpr (shape<To>::is_vector) {
        constexpr bool fills = sizeof...(From) == 1 && (true && ... && !shape<From>::is_vector);
        static_assert(fills || count_of<From...> == shape<To>::count, "a vector made from a wrong number of elements");
        To to{};
        int at = 0;
        if constexpr (fills)
            while (at < shape<To>::count) append(to, at, values...);
        else
            (append(to, at, values), ...);
        return to;
    } else if constexpr (sizeof...(From) == 1 && metal::is_arithmetic_v<To>) {
        return (convert_scalar<To>(values), ...);
    } else {
        return To(values...);
    }
}

// The same bits as another type.
template <class To, class From> inline To as_type(From value) {
    static_assert(sizeof(To) == sizeof(From), "as_type between types of different sizes");
    To to;
    memcpy(&to, &value, sizeof to);
    return to;
}
