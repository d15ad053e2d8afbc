// The scalars of a step, printed from the rules: once per class of tensors, in float64, for every instruction set the same.
#pragma once

#include <cstdint>

namespace openadam {

// What one update needs beside its tensors: from hyperparameters (in the order of the names), scalar states, the step's number and what
// the gradient is multiplied by; first the kernel's scalars, then the scalar states after the step.
struct ScalarProgram {
  const char* hyperparameters;  // names, with a space between them
  void (*run)(const double* h, const double* s, double t, double gradient_scale, double* out);
  std::int64_t outputs;
  std::int64_t states;
};

// In the order of the kernels, whose digests cover them; the first belongs to the preparation of gradients.
const ScalarProgram* scalar_programs();

}  // namespace openadam
