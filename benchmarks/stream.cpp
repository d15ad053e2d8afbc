// The streaming limit: the least that an Adam step must move, with next to no arithmetic. Reads g; reads and writes p, m, v; if it is
// to check first, reads g once more before.
#include <cstdint>
#include <thread>
#include <vector>

namespace {

void range(float* __restrict__ p, const float* __restrict__ g, float* __restrict__ m, float* __restrict__ v, std::int64_t begin, std::int64_t end) {
  for (std::int64_t i = begin; i < end; ++i) {
    p[i] += g[i];
    m[i] += g[i];
    v[i] += g[i];
  }
}

void look(const std::uint32_t* g, std::int64_t begin, std::int64_t end, std::uint32_t* seen) {
  std::uint32_t all = 0;
  for (std::int64_t i = begin; i < end; ++i) all |= g[i];
  *seen = all;
}

template <class Work>
void shared(std::int64_t n, int threads, Work work) {
  std::vector<std::thread> helpers;
  for (int t = 1; t < threads; ++t) helpers.emplace_back(work, t, n * t / threads, n * (t + 1) / threads);
  work(0, 0, n / threads);
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace

extern "C" std::uint32_t stream(float* p, const float* g, float* m, float* v, std::int64_t n, int threads, bool check) {
  std::vector<std::uint32_t> seen(static_cast<std::size_t>(threads) * 16);
  if (check)
    shared(n, threads, [&](int t, std::int64_t begin, std::int64_t end) {
      look(reinterpret_cast<const std::uint32_t*>(g), begin, end, &seen[static_cast<std::size_t>(t) * 16]);
    });
  shared(n, threads, [&](int, std::int64_t begin, std::int64_t end) { range(p, g, m, v, begin, end); });
  return seen[0];
}

// Reads a word at each of the addresses, as far ahead as the processor can be sent: what it costs to look at so many objects at all.
extern "C" std::int64_t touch(const std::int64_t* const* addresses, std::int64_t count) {
  constexpr std::int64_t kAhead = 300;
  std::int64_t sum = 0;
  for (std::int64_t k = 0; k < count; ++k) {
    if (k + kAhead < count) __builtin_prefetch(addresses[k + kAhead]);
    sum += *addresses[k];
  }
  return sum;
}
