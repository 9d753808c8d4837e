// Stands in for <metal_stdlib> on the host: included before every translated Metal file.
#pragma once
#include "program.h"

using namespace metal;

// ------------------------------------------------------------------------------------------------- constants

#ifndef M_PI_F
#define M_PI_F 3.14159265358979323846f
#define M_PI_2_F 1.57079632679489661923f
#define M_1_PI_F 0.318309886183790671538f
#define M_2_PI_F 0.636619772367581343076f
#define M_2_SQRTPI_F 1.12837916709551257390f
#define M_SQRT2_F 1.41421356237309504880f
#define M_SQRT1_2_F 0.707106781186547524401f
#define M_E_F 2.71828182845904523536f
#define M_LN2_F 0.693147180559945309417f
#define M_LOG2E_F 1.44269504088896340736f
#endif
#undef INFINITY
#define INFINITY __builtin_inff()
#undef NAN
#define NAN __builtin_nanf("")

// -------------------------------------------------------------------------------------------------- keywords

#define kernel
#define METAL_FUNC inline
#define thread
// Metal has no double. Literals are made single by the compiler's options.
#define double metal_has_no_double

#ifdef MSL_CHECK_ADDRESS_SPACES
#define device __attribute__((address_space(1)))
#define constant const __attribute__((address_space(2)))
#define threadgroup __attribute__((address_space(3)))
#define MSL_THREADGROUP_VARIABLE static threadgroup
#else
#define device
#define constant const
#define threadgroup
#if __has_feature(address_sanitizer)
// The sanitizer guards no variables in sections of our own.
#define MSL_THREADGROUP_VARIABLE static
#else
#define MSL_THREADGROUP_VARIABLE static __attribute__((section("msl_threadgroup")))
#endif
#endif
