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
  // The same, which takes all measures but the norm on its way; joined holds kLanes lanes of the arithmetic's type for each. Elements begin at
  // lane 0. Null for the one that prepares.
  void (*run_measured[kDtypes])(void* const* tensors, const void* given, const double* scalars, std::int64_t n, void* joined);
  std::int64_t states;
  std::int64_t scalars;
};

// One measure, of every element: of the gradient as given, of the parameter before the update and after it.
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
  double (*norm[kDtypes])(const void* gradient, std::int64_t n);
  double (*fold[kDtypes])(void* lanes, bool is_max);  // of the lanes of a measure
  Look look[kDtypes];
  Take take[kDtypes];
};

}  // namespace openadam
