// The kernels of one instruction set, as tables of plain function pointers: what a unit of kernels.cpp exports.
#pragma once

#include <cstdint>

#include "code.hpp"

namespace openadam {

enum Dtype : std::int64_t { kFloat32 = 0, kFloat64 = 1, kDtypes = 2 };

// One update rule: tensors are the addresses of g, p and its states, scalars the values of the step in float64.
struct UpdateKernel {
  const char* name;
  const char* digest;
  void (*run[kDtypes])(void* const* tensors, const double* scalars, std::int64_t n);
  std::int64_t states;
  std::int64_t scalars;
};

// One measure. Those who take them are given the addresses of g, p before the update and p after it, and a place for each measure.
struct MeasureKernel {
  const char* name;
  const char* digest;
  bool is_max;  // joined by the largest value, else by the sum
};

struct KernelSet {
  const char* isa;
  const UpdateKernel* updates;  // the first one prepares gradients
  std::int64_t update_count;
  const MeasureKernel* measures;  // the first is the norm's
  std::int64_t measure_count;
  void (*norm[kDtypes])(const void* const* tensors, std::int64_t n, double* joined);
  void (*other_measures[kDtypes])(const void* const* tensors, std::int64_t n, double* joined);
  Interpret interpret[kDtypes];
};

}  // namespace openadam
