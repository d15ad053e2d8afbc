// The generated kernels, compiled once per instruction set (OPENADAM_ISA names it).
//
// Everything here has internal linkage and nothing from the standard library but <cstdint> is used, so that the linker
// can never take a function compiled for a newer processor for one that runs on an older (a test reads the symbols).
#include "kernels.hpp"

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

#define JOIN_NAMES_(a, b) a##b
#define JOIN_NAMES(a, b) JOIN_NAMES_(a, b)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)

namespace {

inline float root(float x) { return SQRTF(x); }
inline double root(double x) { return SQRT(x); }
inline float absolute(float x) { return FABSF(x); }
inline double absolute(double x) { return FABS(x); }
template <class T>
constexpr T smallest_normal = T(2.2250738585072014e-308);
template <>
constexpr float smallest_normal<float> = 1.17549435e-38F;

// The whole power of 2 below; of what is subnormal, less than any other.
inline std::int64_t exponent(float x) { return static_cast<std::int64_t>(__builtin_bit_cast(std::uint32_t, x) >> 23 & 0xFF) - 127; }
inline std::int64_t exponent(double x) { return static_cast<std::int64_t>(__builtin_bit_cast(std::uint64_t, x) >> 52 & 0x7FF) - 1023; }

template <class T>
inline T sum(T a, T b) {
  return a + b;
}
template <class T>
inline T largest(T a, T b) {
  return (a > b || a != a) ? a : b;
}

// Values are joined lane by lane, element i in lane i % kLanes, and the lanes are then folded in halves. The order is the same whatever the
// width of the vectors, so the result is too.
using openadam::kLanes;

template <class T, class Join>
inline T fold(T* lanes, Join join) {
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int lane = 0; lane < width; ++lane) lanes[lane] = join(lanes[lane], lanes[lane + width]);
  return lanes[0];
}

template <class T>
double fold_lanes(void* lanes, bool is_max) {
  T* const each = static_cast<T*>(lanes);
  return is_max ? fold(each, [](T a, T b) { return largest(a, b); }) : fold(each, [](T a, T b) { return sum(a, b); });
}

#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define INDEPENDENT _Pragma("GCC ivdep")
#else
#define INDEPENDENT
#endif

#include "generated_kernels.hpp"
#include "interpreter.hpp"

#define PREPARE_ROW(name, digest, function, states, scalars) {name, digest, {function<float>, function<double>}, {}, states, scalars},
#define UPDATE_ROW(name, digest, function, states, scalars) \
  {name, digest, {function<float>, function<double>}, {function##_measured<float>, function##_measured<double>}, states, scalars},
const openadam::UpdateKernel kUpdates[] = {UPDATE_KERNELS(PREPARE_ROW, UPDATE_ROW)};

#define MEASURE_ROW(name, digest, is_max) {name, digest, is_max},
const openadam::MeasureKernel kMeasures[] = {MEASURE_KERNELS(MEASURE_ROW)};

const openadam::KernelSet kSet = {
    TEXT(OPENADAM_ISA),
    kUpdates,
    sizeof(kUpdates) / sizeof(kUpdates[0]),
    kMeasures,
    sizeof(kMeasures) / sizeof(kMeasures[0]),
    {norm<float>, norm<double>},
    {fold_lanes<float>, fold_lanes<double>},
    {look<float>, look<double>},
    {take<float>, take<double>},
};

}  // namespace

extern "C" const openadam::KernelSet* JOIN_NAMES(openadam_kernels_, OPENADAM_ISA)() { return &kSet; }
