// Which sets of kernels this processor can run: asked of the processor, not assumed from the compiler.
#include "dispatch.hpp"

#if defined(_MSC_VER) && defined(_M_X64)
#include <intrin.h>
#endif

#if defined(__x86_64__) || defined(_M_X64)
extern "C" const openadam::KernelSet* openadam_kernels_x86_64_v2();
extern "C" const openadam::KernelSet* openadam_kernels_x86_64_v3();
extern "C" const openadam::KernelSet* openadam_kernels_x86_64_v4();
#else
extern "C" const openadam::KernelSet* openadam_kernels_baseline();
#endif

namespace openadam {

std::vector<const KernelSet*> kernel_sets() {
  std::vector<const KernelSet*> sets;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool v2 = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("ssse3");
  const bool v3 =
      v2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (v4) sets.push_back(openadam_kernels_x86_64_v4());
  if (v3) sets.push_back(openadam_kernels_x86_64_v3());
  if (v2) sets.push_back(openadam_kernels_x86_64_v2());
#elif defined(_M_X64)
  int leaf1[4], leaf7[4];
  __cpuid(leaf1, 1);
  __cpuidex(leaf7, 7, 0);
  const bool saves_ymm = (leaf1[2] & (1 << 27)) && (_xgetbv(0) & 6) == 6;
  const bool saves_zmm = saves_ymm && (_xgetbv(0) & 0xE0) == 0xE0;
  const bool v3 = saves_ymm && (leaf1[2] & (1 << 12)) && (leaf7[1] & (1 << 3)) && (leaf7[1] & (1 << 5)) && (leaf7[1] & (1 << 8));
  const bool v4 = v3 && saves_zmm && (leaf7[1] & (1 << 16)) && (leaf7[1] & (1 << 17)) && (leaf7[1] & (1 << 30)) && (leaf7[1] & (1u << 31));
  if (v4) sets.push_back(openadam_kernels_x86_64_v4());
  if (v3) sets.push_back(openadam_kernels_x86_64_v3());
  if (leaf1[2] & (1 << 20)) sets.push_back(openadam_kernels_x86_64_v2());
#else
  sets.push_back(openadam_kernels_baseline());
#endif
  return sets;
}

}  // namespace openadam
