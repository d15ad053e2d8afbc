// Which sets of kernels this processor can run.
#pragma once

#include <vector>

#include "kernels.hpp"

namespace openadam {

// The best first; empty where none of the compiled sets runs here.
std::vector<const KernelSet*> kernel_sets();

}  // namespace openadam
