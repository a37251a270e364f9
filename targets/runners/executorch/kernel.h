// What our own kernels share. They are for AVX2; where they are not `here`, `forward` and `prefill` do the same by
// XNNPACK.

#pragma once

#include "team.h"

#include <executorch/runtime/core/function_ref.h>
#include <executorch/runtime/kernel/kernel_includes.h>

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#define KERNEL_TARGET __attribute__((target("avx2,fma")))
#endif

// The wheel has this function in libexecutorch_threadpool.so; its header declares one of the same name without threads.
namespace executorch::extension {
bool parallel_for(int64_t begin, int64_t end, int64_t least, runtime::FunctionRef<void(int64_t, int64_t)> part);
}

namespace kernel {

using executorch::runtime::EValue;
using Context = executorch::runtime::KernelRuntimeContext;
using Stack = executorch::runtime::Span<EValue*>;

// Multiplications that are worth waking a thread of the runtime, and one of the team's that is still awake.
constexpr int64_t kWorth = 1 << 18, kWorthAwake = 1 << 15;

// Calls `part` with shares of 0 to `count`, of `work` multiplications each; by the team where they come often, as those
// of one token do.
template <typename Part>
void share(Context& context, int64_t count, int64_t work, bool often, const Part& part) {
  const auto least = [work](int64_t worth) { return worth / (work > 0 ? work : 1) + 1; };
  constexpr int64_t kWhole = 16;  // rows: a cache line of outputs, and no rows side by side are parted
  if (often && team::present) {
    const int64_t some = (least(kWorthAwake) + kWhole - 1) / kWhole * kWhole;
    return team::present->run(count, some, part);
  }
  if (!executorch::extension::parallel_for(0, count, least(kWorth), part)) {
    context.fail(executorch::runtime::Error::Internal);
  }
}

#if defined(__x86_64__)

inline bool here() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

KERNEL_TARGET inline __m256i load(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}

KERNEL_TARGET inline float total(__m256 lanes) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

KERNEL_TARGET inline int32_t total(__m256i lanes) {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

#else

inline bool here() { return false; }

#endif

}  // namespace kernel
