// The output layer of a language model whose codes have 4 bits and a scale per block of 32, for one token.
//
// XNNPACK's kernel for such blocks waits for its own arithmetic on AVX2; this one waits for memory. It takes the
// codes as they lie in the file, packs nothing, and computes what XNNPACK does: inputs rounded to int8 with a scale
// and a zero point, whole numbers within a block, float32 across blocks. `step` of a program calls it; where it
// is not `here`, `forward` does the same by XNNPACK.

#pragma once

#include "runner.h"

#include <executorch/runtime/core/function_ref.h>
#include <executorch/runtime/kernel/kernel_includes.h>
#include <executorch/runtime/kernel/operator_registry.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#define OUTPUT_LAYER_TARGET __attribute__((target("avx2,fma")))
#endif

// The wheel has this function in libexecutorch_threadpool.so; its header declares one of the same name without threads.
namespace executorch::extension {
bool parallel_for(int64_t begin, int64_t end, int64_t least, runtime::FunctionRef<void(int64_t, int64_t)> part);
}

namespace output_layer {

constexpr int64_t kBlock = 32, kPair = 2 * kBlock;  // codes: two blocks fill a register
constexpr int64_t kLeast = 1024;                  // rows that a thread is worth
constexpr const char* kName = "paredown::output_layer.out";

// A token's inputs, those of even and of odd places apart, as the halves of the codes' bytes are.
struct Inputs {
  std::vector<int8_t> even, odd;
  std::vector<int32_t> eights;  // four for each block: -8 times its sum, since codes lie with 8 added; then zeros
  float scale;
  int32_t zero;
};

inline Inputs rounded(const float* x, int64_t width) {
  const auto [low, high] = std::minmax_element(x, x + width);
  const float least = std::min(*low, 0.0f), most = std::max(*high, 0.0f);
  const float scale = std::max((most - least) / 255, std::numeric_limits<float>::epsilon());
  const float below = least / scale - 128, above = most / scale + 127;
  const float zero = below + above > 0 ? -128 - least / scale : 127 - most / scale;
  Inputs found{std::vector<int8_t>(width / 2), std::vector<int8_t>(width / 2),
               std::vector<int32_t>(width / kBlock * 4), scale,
               static_cast<int32_t>(std::nearbyint(std::clamp(zero, -128.0f, 127.0f)))};
  for (int64_t i = 0; i < width; ++i) {
    const float code = std::nearbyint(x[i] / scale + static_cast<float>(found.zero));
    const auto held = static_cast<int8_t>(std::clamp(code, -128.0f, 127.0f));
    (i % 2 ? found.odd : found.even)[i / 2] = held;
    found.eights[i / kBlock * 4] -= 8 * (held - found.zero);
  }
  return found;
}

#if defined(__x86_64__)

inline bool here() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

OUTPUT_LAYER_TARGET inline float total(__m256 lanes) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

OUTPUT_LAYER_TARGET inline __m256i load(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}

// Rows `first` to `last` of the logits. A byte has two codes, each plus 8, the first one in its lower half.
OUTPUT_LAYER_TARGET inline void compute(const Inputs& x, const uint8_t* codes, const uint16_t* scales,
                                        int64_t width, int64_t first, int64_t last, float* logits) {
  constexpr int kAhead = 2048;  // bytes: how far before they are used codes are asked for; measured
  const int64_t bytes = width / 2, blocks = width / kBlock;
  const __m256i half = _mm256_set1_epi8(15), bytes_of_one = _mm256_set1_epi8(1), ones = _mm256_set1_epi16(1);
  const __m256i zero = _mm256_set1_epi16(static_cast<int16_t>(x.zero));
  const __m256i up = _mm256_setr_epi32(16, 16, 16, 16, 0, 0, 0, 0), high = _mm256_set1_epi32(0xffff0000);
  for (int64_t row = first; row < last; ++row) {
    const uint8_t* code = codes + row * bytes;
    const uint16_t* scale = scales + row * blocks;
    _mm_prefetch(reinterpret_cast<const char*>(scale) + kAhead / 8, _MM_HINT_T0);
    __m256 sum = _mm256_setzero_ps();
    for (int64_t block = 0; block < blocks; block += 2) {
      _mm_prefetch(reinterpret_cast<const char*>(code) + block * 16 + kAhead, _MM_HINT_T0);
      const __m256i both = load(code + block * 16);
      const __m256i even = _mm256_and_si256(both, half);
      const __m256i odd = _mm256_and_si256(_mm256_srli_epi16(both, 4), half);
      // 15 * 128 * 4 and the zero point's share are within 16 bits together
      __m256i products = _mm256_add_epi16(_mm256_maddubs_epi16(even, load(x.even.data() + block * 16)),
                                          _mm256_maddubs_epi16(odd, load(x.odd.data() + block * 16)));
      const __m256i plain = _mm256_maddubs_epi16(_mm256_add_epi8(even, odd), bytes_of_one);
      products = _mm256_sub_epi16(products, _mm256_mullo_epi16(plain, zero));
      const __m256i sums = _mm256_add_epi32(_mm256_madd_epi16(products, ones), load(x.eights.data() + block * 4));
      int32_t two;  // bfloat16 scales, the first one for the lower half of the lanes
      std::memcpy(&two, scale + block, sizeof two);
      const __m256i held = _mm256_and_si256(_mm256_sllv_epi32(_mm256_set1_epi32(two), up), high);
      sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), _mm256_castsi256_ps(held), sum);
    }
    logits[row] = total(sum) * x.scale;
  }
}

#else

inline bool here() { return false; }
inline void compute(const Inputs&, const uint8_t*, const uint16_t*, int64_t, int64_t, int64_t, float*) {}

#endif

// (x, codes, scales, out, out): float32 (1, 1, width), uint8 (rows, width / 2), bfloat16 (rows, width / 32) and
// float32 (1, 1, rows).
inline void call(executorch::runtime::KernelRuntimeContext& context,
                 executorch::runtime::Span<executorch::runtime::EValue*> stack) {
  using executorch::aten::ScalarType;
  constexpr std::array kinds{ScalarType::Float, ScalarType::Byte, ScalarType::BFloat16, ScalarType::Float};
  bool right = stack.size() == 5;
  for (size_t i = 0; right && i < kinds.size(); ++i) {
    right = stack[i]->isTensor() && stack[i]->toTensor().scalar_type() == kinds[i];
  }
  if (!right) return context.fail(executorch::runtime::Error::InvalidArgument);
  const auto x = stack[0]->toTensor(), codes = stack[1]->toTensor(), scales = stack[2]->toTensor();
  auto out = stack[3]->toTensor();
  const int64_t width = x.numel(), rows = out.numel();
  if (!here() || width == 0 || width % kPair || codes.numel() != rows * width / 2 ||
      scales.numel() != rows * width / kBlock) {
    return context.fail(executorch::runtime::Error::InvalidArgument);
  }
  const Inputs inputs = rounded(x.const_data_ptr<float>(), width);
  const auto* first = codes.const_data_ptr<uint8_t>();
  const auto* held = static_cast<const uint16_t*>(scales.const_data_ptr());
  auto* logits = out.mutable_data_ptr<float>();
  const auto part = [&](int64_t from, int64_t to) { compute(inputs, first, held, width, from, to, logits); };
  if (!executorch::extension::parallel_for(0, rows, kLeast, part)) {
    context.fail(executorch::runtime::Error::Internal);
  }
}

inline bool install() {
  static const executorch::runtime::Kernel kernel(kName, call);
  return here() && executorch::runtime::register_kernel(kernel) == executorch::runtime::Error::Ok;
}

}  // namespace output_layer
