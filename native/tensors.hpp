// Reading the tensors of another framework without its headers: the exchange interface of DLPack, spoken by torch since 2.10.
#pragma once

#include <nanobind/nanobind.h>

namespace openadam {

void bind_tensors(nanobind::module_& m);

}  // namespace openadam
