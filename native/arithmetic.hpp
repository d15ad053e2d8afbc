// What printed kernels are made of: here, and where a user's own rule is compiled (src/openadam/compiling.py), for which this file is installed.
//
// Everything has internal linkage, and nothing from the standard library but <cstdint> is used, so that the linker can never take a function
// compiled for a newer processor for one that runs on an older (a test reads the symbols).
#pragma once

#include <cstdint>

#if defined(_MSC_VER)
#include <cmath>
#define RESTRICT __restrict
#define SQRTF(x) sqrtf(x)
#define SQRT(x) sqrt(x)
#define FABSF(x) fabsf(x)
#define FABS(x) fabs(x)
#else
#define RESTRICT __restrict__
#define SQRTF(x) __builtin_sqrtf(x)
#define SQRT(x) __builtin_sqrt(x)
#define FABSF(x) __builtin_fabsf(x)
#define FABS(x) __builtin_fabs(x)
#endif

#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define INDEPENDENT _Pragma("GCC ivdep")
#else
#define INDEPENDENT
#endif

namespace {

inline float root(float x) { return SQRTF(x); }
inline double root(double x) { return SQRT(x); }
inline float absolute(float x) { return FABSF(x); }
inline double absolute(double x) { return FABS(x); }
template <class T>
constexpr T smallest_normal = T(2.2250738585072014e-308);
template <>
constexpr float smallest_normal<float> = 1.17549435e-38F;

template <class T>
inline T sum(T a, T b) {
  return a + b;
}
template <class T>
inline T largest(T a, T b) {
  return (a > b || a != a) ? a : b;
}

}  // namespace
