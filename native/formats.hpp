// How the elements of a tensor are fetched and put back: any strides, any alignment.
#pragma once

#include <cstdint>
#include <cstring>

namespace openadam {

constexpr std::int64_t kMaxDimensions = 64;

// Where the elements of a tensor stand, in the order in which its states are stored. Strides are in bytes.
struct Strided {
  std::int64_t dimensions;
  const std::int64_t* shape;
  const std::int64_t* strides;
};

// Copies elements [begin, begin + n) between strided memory and a dense block; kBytes is the size of one.
template <std::size_t kBytes, bool kFetch>
void copy_strided(char* base, const Strided& at, std::int64_t begin, std::int64_t n, char* dense) {
  std::int64_t index[kMaxDimensions] = {};
  std::int64_t offset = 0;
  std::int64_t rest = begin;
  for (std::int64_t d = at.dimensions - 1; d >= 0; --d) {
    index[d] = rest % at.shape[d];
    rest /= at.shape[d];
    offset += index[d] * at.strides[d];
  }
  while (n > 0) {
    std::int64_t run = 1;
    std::int64_t stride = 0;
    const std::int64_t last = at.dimensions - 1;
    if (last >= 0) {
      run = at.shape[last] - index[last];
      run = run < n ? run : n;
      stride = at.strides[last];
    }
    for (std::int64_t i = 0; i < run; ++i, dense += kBytes) {
      char* element = base + offset + i * stride;
      if constexpr (kFetch)
        std::memcpy(dense, element, kBytes);
      else
        std::memcpy(element, dense, kBytes);
    }
    n -= run;
    if (last < 0) return;
    offset += run * stride;
    index[last] += run;
    for (std::int64_t d = last; d > 0 && index[d] == at.shape[d]; --d) {
      offset += at.strides[d - 1] - index[d] * at.strides[d];
      index[d] = 0;
      ++index[d - 1];
    }
  }
}

template <bool kFetch>
void copy_strided(std::int64_t bytes, char* base, const Strided& at, std::int64_t begin, std::int64_t n, char* dense) {
  if (bytes == 4)
    copy_strided<4, kFetch>(base, at, begin, n, dense);
  else
    copy_strided<8, kFetch>(base, at, begin, n, dense);
}

}  // namespace openadam
