// The generated kernels, compiled once per instruction set (OPENADAM_ISA names it). Everything here has internal linkage: see arithmetic.hpp.
#include "kernels.hpp"

#include "arithmetic.hpp"

#define JOIN_NAMES_(a, b) a##b
#define JOIN_NAMES(a, b) JOIN_NAMES_(a, b)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)

namespace {

// The whole power of 2 below; of what is subnormal, less than any other.
inline std::int64_t exponent(float x) { return static_cast<std::int64_t>(__builtin_bit_cast(std::uint32_t, x) >> 23 & 0xFF) - 127; }
inline std::int64_t exponent(double x) { return static_cast<std::int64_t>(__builtin_bit_cast(std::uint64_t, x) >> 52 & 0x7FF) - 1023; }

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
