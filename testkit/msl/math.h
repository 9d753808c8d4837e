// metal_math, metal_integer, metal_common, metal_geometric: functions of scalars, and the same element by
// element for vectors. Everything is computed in f32 and rounded once to the argument's type.
#pragma once
#include "types.h"

namespace metal {

template <class T> using float_t = std::enable_if_t<is_floating_point_v<T>, T>;
template <class T> using integer_t = std::enable_if_t<std::is_integral_v<T>, T>;
template <class T> using vector_t = std::enable_if_t<msl::shape<T>::is_vector, T>;

// ------------------------------------------------------------------------------------------ one argument

#define MSL_FUNCTION_1(NAME, VALUE)                                                                            \
    template <class T> inline float_t<T> NAME(T argument) {                                                    \
        float x = (float)argument;                                                                             \
        return (T)(VALUE);                                                                                     \
    }                                                                                                          \
    template <class T> inline std::enable_if_t<std::is_integral_v<T>, float> NAME(T argument) {                \
        return NAME((float)argument);                                                                          \
    }                                                                                                          \
    template <class T> inline vector_t<T> NAME(T argument) {                                                   \
        for (int i = 0; i < msl::shape<T>::count; i++) argument[i] = NAME(argument[i]);                        \
        return argument;                                                                                       \
    }
MSL_FUNCTION_1(exp, std::exp(x))
MSL_FUNCTION_1(exp2, std::exp2(x))
MSL_FUNCTION_1(exp10, std::pow(10.f, x))
MSL_FUNCTION_1(log, std::log(x))
MSL_FUNCTION_1(log2, std::log2(x))
MSL_FUNCTION_1(log10, std::log10(x))
MSL_FUNCTION_1(sin, std::sin(x))
MSL_FUNCTION_1(cos, std::cos(x))
MSL_FUNCTION_1(tan, std::tan(x))
MSL_FUNCTION_1(asin, std::asin(x))
MSL_FUNCTION_1(acos, std::acos(x))
MSL_FUNCTION_1(atan, std::atan(x))
MSL_FUNCTION_1(sinh, std::sinh(x))
MSL_FUNCTION_1(cosh, std::cosh(x))
MSL_FUNCTION_1(tanh, std::tanh(x))
MSL_FUNCTION_1(sqrt, std::sqrt(x))
MSL_FUNCTION_1(rsqrt, 1.f / std::sqrt(x))
MSL_FUNCTION_1(floor, std::floor(x))
MSL_FUNCTION_1(ceil, std::ceil(x))
MSL_FUNCTION_1(round, std::round(x))
MSL_FUNCTION_1(rint, std::nearbyint(x))
MSL_FUNCTION_1(trunc, std::trunc(x))
MSL_FUNCTION_1(fabs, std::fabs(x))
MSL_FUNCTION_1(fract, x - std::floor(x))
MSL_FUNCTION_1(saturate, x > 0.f ? (x < 1.f ? x : 1.f) : 0.f)
MSL_FUNCTION_1(sign, x > 0.f ? 1.f : x < 0.f ? -1.f : 0.f)
#undef MSL_FUNCTION_1

template <class T> inline float_t<T> abs(T a) { return fabs(a); }
template <class T> inline integer_t<T> abs(T a) { return a < T(0) ? T(-a) : a; }
template <class T> inline vector_t<T> abs(T a) {
    for (int i = 0; i < msl::shape<T>::count; i++) a[i] = abs(a[i]);
    return a;
}
template <class T> inline bool isnan(T a) { return std::isnan((float)a); }
template <class T> inline bool isinf(T a) { return std::isinf((float)a); }
template <class T> inline bool isfinite(T a) { return std::isfinite((float)a); }

// ---------------------------------------------------------------------------------- two and three arguments

// The type of an operation on two scalars: a float beats an integer, two of a kind stay what they are.
template <class A, class B, class = std::enable_if_t<is_arithmetic_v<A> && is_arithmetic_v<B>>>
using common_t = std::conditional_t<
    std::is_same_v<A, B>, A,
    std::conditional_t<is_floating_point_v<A> && !is_floating_point_v<B>, A,
                       std::conditional_t<is_floating_point_v<B> && !is_floating_point_v<A>, B,
                                          std::conditional_t<is_floating_point_v<A>, float, std::common_type_t<A, B>>>>>;

// A NaN loses against a number, as on the GPU.
template <class A, class B> constexpr common_t<A, B> max(A left, B right) {
    using T = common_t<A, B>;
    T a = (T)left, b = (T)right;
    return a != a || a < b ? b : a;
}
template <class A, class B> constexpr common_t<A, B> min(A left, B right) {
    using T = common_t<A, B>;
    T a = (T)left, b = (T)right;
    return a != a || b < a ? b : a;
}
template <class A, class B> inline common_t<A, B> pow(A a, B b) { return (common_t<A, B>)std::pow((float)a, (float)b); }
template <class A, class B> inline common_t<A, B> fmod(A a, B b) { return (common_t<A, B>)std::fmod((float)a, (float)b); }
template <class A, class B> inline common_t<A, B> atan2(A a, B b) { return (common_t<A, B>)std::atan2((float)a, (float)b); }
template <class A, class B> inline common_t<A, B> copysign(A a, B b) { return (common_t<A, B>)std::copysign((float)a, (float)b); }
template <class A, class B> inline common_t<A, B> divide(A a, B b) { return (common_t<A, B>)a / (common_t<A, B>)b; }
template <class A, class B> inline common_t<A, B> fmax(A a, B b) { return max(a, b); }
template <class A, class B> inline common_t<A, B> fmin(A a, B b) { return min(a, b); }
template <class A, class B> inline common_t<A, B> powr(A a, B b) { return pow(a, b); }
template <class T> inline float_t<T> fma(T a, T b, T c) { return (T)std::fma((float)a, (float)b, (float)c); }
template <class T> inline float_t<T> mix(T a, T b, T part) { return a + (b - a) * part; }
template <class T, class L, class H> constexpr std::enable_if_t<is_arithmetic_v<T>, T> clamp(T a, L low, H high) {
    return min(max(a, (T)low), (T)high);
}
template <class T> constexpr T max3(T a, T b, T c) { return max(a, max(b, c)); }
template <class T> constexpr T min3(T a, T b, T c) { return min(a, min(b, c)); }

#define MSL_VECTOR_2(NAME)                                                                                     \
    template <class T, int N> inline vec<T, N> NAME(vec<T, N> a, vec<T, N> b) {                                \
        for (int i = 0; i < N; i++) a[i] = NAME(T(a[i]), T(b[i]));                                             \
        return a;                                                                                              \
    }                                                                                                          \
    template <class T, int N> inline vec<T, N> NAME(vec<T, N> a, T b) { return NAME(a, vec<T, N>(b)); }
MSL_VECTOR_2(max)
MSL_VECTOR_2(min)
MSL_VECTOR_2(fmax)
MSL_VECTOR_2(fmin)
MSL_VECTOR_2(pow)
MSL_VECTOR_2(fmod)
#undef MSL_VECTOR_2
template <class T, int N> inline vec<T, N> fma(vec<T, N> a, vec<T, N> b, vec<T, N> c) {
    for (int i = 0; i < N; i++) a[i] = fma(T(a[i]), T(b[i]), T(c[i]));
    return a;
}
template <class T, int N> inline vec<T, N> mix(vec<T, N> a, vec<T, N> b, T part) { return a + (b - a) * part; }
template <class T, int N> inline vec<T, N> clamp(vec<T, N> a, T low, T high) { return min(max(a, low), high); }

template <class T, int N> inline T dot(vec<T, N> a, vec<T, N> b) {
    T sum = a[0] * b[0];
    for (int i = 1; i < N; i++) sum += a[i] * b[i];
    return sum;
}
template <class T, int N> inline T length(vec<T, N> a) { return sqrt(dot(a, a)); }

// Comparisons of vectors give integer vectors here, with all bits set where true.
template <class T> inline bool all(T mask) {
    bool result = true;
    for (int i = 0; i < msl::shape<T>::count; i++) result = result && mask[i];
    return result;
}
template <class T> inline bool any(T mask) {
    bool result = false;
    for (int i = 0; i < msl::shape<T>::count; i++) result = result || mask[i];
    return result;
}
template <class T> inline std::enable_if_t<!msl::shape<T>::is_vector, T> select(T a, T b, bool second) { return second ? b : a; }
template <class T, class M> inline vector_t<T> select(T a, T b, M second) {
    static_assert(msl::shape<M>::count == msl::shape<T>::count, "select: one condition per element");
    for (int i = 0; i < msl::shape<T>::count; i++) a[i] = second[i] ? b[i] : a[i];
    return a;
}

// ------------------------------------------------------------------------------------------------- integers

template <class T> inline integer_t<T> popcount(T v) { return (T)__builtin_popcountl((std::make_unsigned_t<T>)v); }
template <class T> inline integer_t<T> ctz(T v) { return v ? (T)__builtin_ctzl((std::make_unsigned_t<T>)v) : T(8 * sizeof(T)); }
template <class T> inline integer_t<T> clz(T v) {
    return v ? (T)(__builtin_clzl((std::make_unsigned_t<T>)v) - (64 - 8 * (int)sizeof(T))) : T(8 * sizeof(T));
}
inline uint mulhi(uint a, uint b) { return (uint)((ulong)a * b >> 32); }
inline int mulhi(int a, int b) { return (int)((long)a * b >> 32); }
inline uint extract_bits(uint value, uint offset, uint bits) { return bits == 0 ? 0 : value << (32 - offset - bits) >> (32 - bits); }

// ------------------------------------------------------------------------------ the fast and precise variants

#define MSL_VARIANT(NAME)                                                                                      \
    namespace NAME {                                                                                           \
    using metal::atan2, metal::clamp, metal::cos, metal::divide, metal::exp, metal::exp2, metal::exp10, metal::fmax,   \
        metal::fmin, metal::log, metal::log2, metal::max, metal::min, metal::pow, metal::powr, metal::rsqrt,   \
        metal::sin, metal::sqrt, metal::tan, metal::tanh;                                                      \
    }
MSL_VARIANT(fast)
MSL_VARIANT(precise)
#undef MSL_VARIANT

} // namespace metal
