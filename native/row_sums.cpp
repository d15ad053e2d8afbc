// Gradients that name their rows: each row once and in ascending order, with the sum of its values.
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "table.hpp"
#include "threads.hpp"

namespace nb = nanobind;

namespace openadam {
namespace {

using Indices = nb::ndarray<const std::int64_t, nb::numpy, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Values = nb::ndarray<const T, nb::numpy, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

struct Named {
  std::int64_t row;
  std::int64_t at;  // which of the values
};

// Puts what is named into the order of the rows; what names the same row stays in the order given.
void sort_by_row(std::vector<Named>& named) {
  constexpr int kDigit = 11;
  constexpr std::int64_t kMask = (std::int64_t{1} << kDigit) - 1;
  std::int64_t largest = 0;
  for (const Named& each : named) largest = std::max(largest, each.row);
  std::vector<Named> sorted(named.size());
  for (int shift = 0; shift < 63 && largest >> shift; shift += kDigit) {
    std::array<std::size_t, kMask + 2> begins{};
    for (const Named& each : named) ++begins[static_cast<std::size_t>((each.row >> shift) & kMask) + 1];
    for (std::size_t digit = 1; digit < begins.size(); ++digit) begins[digit] += begins[digit - 1];
    for (const Named& each : named) sorted[begins[static_cast<std::size_t>((each.row >> shift) & kMask)]++] = each;
    named.swap(sorted);
  }
}

template <class T, class... Options>
nb::object given_away(std::unique_ptr<T[]> memory, std::initializer_list<std::size_t> shape) {
  T* data = memory.release();
  const nb::capsule owner(data, [](void* held) noexcept { delete[] static_cast<T*>(held); });
  return nb::cast(nb::ndarray<T, nb::numpy>(data, shape, owner));
}

template <class T>
std::pair<nb::object, nb::object> sum_rows(const Indices& indices, const Values<T>& values) {
  const std::size_t count = indices.size();
  const std::size_t width = values.shape(1);
  if (values.shape(0) != count) throw std::invalid_argument("indices and values differ in length");
  std::vector<Named> named(count);
  for (std::size_t k = 0; k < count; ++k) named[k] = {indices.data()[k], static_cast<std::int64_t>(k)};
  if (std::any_of(named.begin(), named.end(), [](const Named& each) { return each.row < 0; })) throw std::invalid_argument("an index is negative");
  sort_by_row(named);
  std::size_t distinct = 0;
  for (std::size_t k = 0; k < count; ++k) distinct += k == 0 || named[k].row != named[k - 1].row;
  auto rows = std::make_unique_for_overwrite<std::int64_t[]>(std::max<std::size_t>(distinct, 1));
  auto sums = std::make_unique_for_overwrite<T[]>(std::max<std::size_t>(distinct * width, 1));
  const IeeeMode ieee;
  constexpr std::size_t kAhead = 8;
  T* sum = nullptr;
  std::size_t row = 0;
  for (std::size_t k = 0; k < count; ++k) {
    const T* value = values.data() + static_cast<std::size_t>(named[k].at) * width;
    if (k + kAhead < count) {
      const char* next = reinterpret_cast<const char*>(values.data() + static_cast<std::size_t>(named[k + kAhead].at) * width);
      for (std::size_t byte = 0; byte < std::min<std::size_t>(width * sizeof(T), 512); byte += 64) send_ahead(next + byte);
    }
    if (k == 0 || named[k].row != named[k - 1].row) {
      sum = sums.get() + row * width;
      rows[row++] = named[k].row;
      if (width) std::memcpy(sum, value, width * sizeof(T));
    } else {
      for (std::size_t i = 0; i < width; ++i) sum[i] += value[i];
    }
  }
  return {given_away(std::move(rows), {distinct}), given_away(std::move(sums), {distinct, width})};
}

}  // namespace

void bind_row_sums(nb::module_& m) {
  const char* doc = "The rows that are named, each once and in ascending order, and the sums of their values in the order given.";
  m.def("sum_rows", &sum_rows<float>, nb::arg("indices").noconvert(), nb::arg("values").noconvert(), doc);
  m.def("sum_rows", &sum_rows<double>, nb::arg("indices").noconvert(), nb::arg("values").noconvert(), doc);
}

}  // namespace openadam
