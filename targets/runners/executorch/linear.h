// A linear layer on codes of 4 or 8 bits, for one token or a chunk of them.
//
// XNNPACK's kernel for blocks waits for its own arithmetic on AVX2; for one token this one waits for memory. It takes
// the codes as they lie in the file, packs nothing, and computes what XNNPACK does: inputs rounded to int8 with a
// scale and a zero point per token, whole numbers within a block or a row, float32 across blocks.

#pragma once

#include "kernel.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace linear {

// Codes that share a scale in blocks; those of a register, of 4 and of 8 bits.
constexpr int64_t kBlock = 32, kPair = 2 * kBlock, kWhole = 32;
constexpr int kTokens = 8;  // that are computed side by side
constexpr int64_t kRows = 64;  // whose codes stay in the cache while all tokens pass

// How a matrix is held: int4 with a scale per block of 32 (bfloat16) or per row (float32), int8 with one per row.
enum class Kind { kBlocks, kRows4, kRows8 };

struct Matrix {
  const uint8_t* codes;
  const void* scales;
  int64_t width;

  const uint16_t* block_scales(int64_t row) const {
    return static_cast<const uint16_t*>(scales) + row * (width / kBlock);
  }
  float scale(int64_t row) const { return static_cast<const float*>(scales)[row]; }
};

// A token's inputs: for 4 bits those of each 64 with their even places first, as the halves of the codes' bytes are.
struct Inputs {
  int64_t width;
  std::vector<int8_t> codes;
  std::vector<int32_t> eights;  // four for each block: -8 times its sum, since codes lie with 8 added; then zeros
  std::vector<float> scales;
  std::vector<int32_t> zeros, sums;
};

#if defined(__x86_64__)

// What a token's inputs are rounded by.
KERNEL_TARGET inline void range(const float* x, int64_t width, float& scale, int32_t& zero) {
  __m256 low = _mm256_setzero_ps(), high = low;
  for (int64_t i = 0; i < width; i += 8) {
    const __m256 some = _mm256_loadu_ps(x + i);
    low = _mm256_min_ps(low, some);
    high = _mm256_max_ps(high, some);
  }
  float lows[8], highs[8];
  _mm256_storeu_ps(lows, low);
  _mm256_storeu_ps(highs, high);
  const float least = *std::min_element(lows, lows + 8), most = *std::max_element(highs, highs + 8);
  scale = std::max((most - least) / 255, std::numeric_limits<float>::epsilon());
  const float below = least / scale - 128, above = most / scale + 127;
  const float place = below + above > 0 ? -128 - least / scale : 127 - most / scale;
  zero = static_cast<int32_t>(std::nearbyint(std::clamp(place, -128.0f, 127.0f)));
}

// 32 inputs as int8; packing cuts off what is beyond.
KERNEL_TARGET inline __m256i rounded(const float* x, __m256 scale, __m256 zero) {
  __m256i parts[4];
  for (int i = 0; i < 4; ++i) {
    const __m256 units = _mm256_add_ps(_mm256_div_ps(_mm256_loadu_ps(x + 8 * i), scale), zero);
    parts[i] = _mm256_cvtps_epi32(units);
  }
  const __m256i mixed =
      _mm256_packs_epi16(_mm256_packs_epi32(parts[0], parts[1]), _mm256_packs_epi32(parts[2], parts[3]));
  return _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

KERNEL_TARGET inline __m256i sums_of(__m256i codes) {
  const __m256i twos = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
  return _mm256_madd_epi16(twos, _mm256_set1_epi16(1));
}

// Rounds (tokens, width). The eights are those of the codes less the zero point.
KERNEL_TARGET inline Inputs rounded(const float* x, int64_t tokens, int64_t width, Kind kind) {
  const bool halves = kind != Kind::kRows8, blocks = kind == Kind::kBlocks;
  Inputs found{width, std::vector<int8_t>(tokens * width), std::vector<int32_t>(blocks ? tokens * width / 8 : 0),
               std::vector<float>(tokens), std::vector<int32_t>(tokens), std::vector<int32_t>(tokens)};
  const __m256i apart = _mm256_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15,  //
                                         0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
  for (int64_t token = 0; token < tokens; ++token, x += width) {
    range(x, width, found.scales[token], found.zeros[token]);
    const __m256 scale = _mm256_set1_ps(found.scales[token]);
    const __m256 zero = _mm256_set1_ps(static_cast<float>(found.zeros[token]));
    int8_t* to = found.codes.data() + token * width;
    for (int64_t i = 0; i < width; i += kPair) {
      __m256i both[2] = {rounded(x + i, scale, zero), rounded(x + i + kBlock, scale, zero)};
      for (int half = 0; half < 2; ++half) {
        const int32_t sum = kernel::total(sums_of(both[half]));
        found.sums[token] += sum;
        if (blocks) {
          const int32_t less = static_cast<int32_t>(kBlock) * found.zeros[token];
          found.eights[(token * width + i) / 8 + 4 * half] = -8 * (sum - less);
        }
      }
      if (halves) {  // even places of the first block and of the second, then the odd ones
        for (auto& each : both) each = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(each, apart), 0xd8);
        const __m256i even = _mm256_permute2x128_si256(both[0], both[1], 0x20);
        both[1] = _mm256_permute2x128_si256(both[0], both[1], 0x31);
        both[0] = even;
      }
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), both[0]);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i + kBlock), both[1]);
    }
  }
  return found;
}

// Two bfloat16 scales, the first one for the lower half of the lanes.
KERNEL_TARGET inline __m256 pair_of_scales(const uint16_t* scale) {
  int32_t two;
  std::memcpy(&two, scale, sizeof two);
  const __m256i up = _mm256_setr_epi32(16, 16, 16, 16, 0, 0, 0, 0), high = _mm256_set1_epi32(0xffff0000);
  return _mm256_castsi256_ps(_mm256_and_si256(_mm256_sllv_epi32(_mm256_set1_epi32(two), up), high));
}

// One token, blocks: rows `first` to `last`. A byte has two codes, each plus 8, the first one in its lower half.
KERNEL_TARGET inline void compute_blocks(const Inputs& x, const Matrix& matrix, int64_t first, int64_t last,
                                         float* out) {
  constexpr int kAhead = 2048;  // bytes: how far before they are used codes are asked for; measured
  const int64_t bytes = matrix.width / 2, blocks = matrix.width / kBlock;
  const __m256i half = _mm256_set1_epi8(15), bytes_of_one = _mm256_set1_epi8(1), ones = _mm256_set1_epi16(1);
  const __m256i zero = _mm256_set1_epi16(static_cast<int16_t>(x.zeros[0]));
  for (int64_t row = first; row < last; ++row) {
    const uint8_t* code = matrix.codes + row * bytes;
    const uint16_t* scale = matrix.block_scales(row);
    _mm_prefetch(reinterpret_cast<const char*>(scale) + kAhead / 8, _MM_HINT_T0);
    __m256 sum = _mm256_setzero_ps();
    for (int64_t block = 0; block < blocks; block += 2) {
      _mm_prefetch(reinterpret_cast<const char*>(code) + block * 16 + kAhead, _MM_HINT_T0);
      const int8_t* given = x.codes.data() + block * kBlock;
      const __m256i both = kernel::load(code + block * 16);
      const __m256i even = _mm256_and_si256(both, half);
      const __m256i odd = _mm256_and_si256(_mm256_srli_epi16(both, 4), half);
      // 15 * 128 * 4 and the zero point's share are within 16 bits together
      __m256i products = _mm256_add_epi16(_mm256_maddubs_epi16(even, kernel::load(given)),
                                          _mm256_maddubs_epi16(odd, kernel::load(given + kBlock)));
      const __m256i plain = _mm256_maddubs_epi16(_mm256_add_epi8(even, odd), bytes_of_one);
      products = _mm256_sub_epi16(products, _mm256_mullo_epi16(plain, zero));
      const __m256i eights = kernel::load(x.eights.data() + block * 4);
      const __m256i sums = _mm256_add_epi32(_mm256_madd_epi16(products, ones), eights);
      sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), pair_of_scales(scale + block), sum);
    }
    out[row] = kernel::total(sum) * x.scales[0];
  }
}

// Of a row, the outputs of `count` tokens from `token` on, blocks.
template <int count>
KERNEL_TARGET inline void row_of_blocks(const Inputs& x, const Matrix& matrix, int64_t row, int64_t token, float* out,
                                        int64_t rows) {
  const int64_t width = matrix.width, blocks = width / kBlock;
  const __m256i half = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  const uint8_t* code = matrix.codes + row * (width / 2);
  const uint16_t* scale = matrix.block_scales(row);
  const int8_t* given = x.codes.data() + token * width;
  const int32_t* eights = x.eights.data() + token * (width / 8);
  __m256 sums[count];
#pragma GCC unroll 8
  for (int i = 0; i < count; ++i) sums[i] = _mm256_setzero_ps();
  for (int64_t block = 0; block < blocks; block += 2) {
    const __m256i both = kernel::load(code + block * 16);
    const __m256i even = _mm256_and_si256(both, half);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi16(both, 4), half);
    const __m256 scales = pair_of_scales(scale + block);
    const __m256i plain = _mm256_maddubs_epi16(_mm256_add_epi8(even, odd), _mm256_set1_epi8(1));
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) {
      const int8_t* its = given + i * width + block * kBlock;
      __m256i products = _mm256_add_epi16(_mm256_maddubs_epi16(even, kernel::load(its)),
                                          _mm256_maddubs_epi16(odd, kernel::load(its + kBlock)));
      const __m256i zero = _mm256_set1_epi16(static_cast<int16_t>(x.zeros[token + i]));  // exact: floats would cancel
      products = _mm256_sub_epi16(products, _mm256_mullo_epi16(plain, zero));
      const __m256i whole = _mm256_add_epi32(_mm256_madd_epi16(products, ones),
                                             kernel::load(eights + i * (width / 8) + block * 4));
      sums[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), scales, sums[i]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < count; ++i) {
    const int64_t at = token + i;
    out[at * rows + row] = kernel::total(sums[i]) * x.scales[at];
  }
}

// The same with a scale per row.
template <int count, Kind kind>
KERNEL_TARGET inline void row_of_whole(const Inputs& x, const Matrix& matrix, int64_t row, int64_t token, float* out,
                                       int64_t rows) {
  constexpr bool halves = kind == Kind::kRows4;
  constexpr int64_t step = halves ? kPair : kWhole;
  constexpr int32_t added = halves ? 8 : 128;
  constexpr int kAhead = 1024;
  const int64_t width = matrix.width, bytes = halves ? width / 2 : width;
  const __m256i half = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1), none = _mm256_setzero_si256();
  const uint8_t* code = matrix.codes + row * bytes;
  const int8_t* given = x.codes.data() + token * width;
  __m256i sums[count], plain = none;
#pragma GCC unroll 8
  for (int k = 0; k < count; ++k) sums[k] = none;
  for (int64_t i = 0, at = 0; i < width; i += step, at += 32) {
    __m256i both = kernel::load(code + at);
    _mm_prefetch(reinterpret_cast<const char*>(code) + at + kAhead, _MM_HINT_T0);
    if (!halves) both = _mm256_xor_si256(both, _mm256_set1_epi8(-128));  // 128 added
    const __m256i low = _mm256_and_si256(both, half), high = _mm256_and_si256(_mm256_srli_epi16(both, 4), half);
    plain = _mm256_add_epi64(plain, _mm256_sad_epu8(halves ? _mm256_add_epi8(low, high) : both, none));
#pragma GCC unroll 8
    for (int k = 0; k < count; ++k) {
      const int8_t* its = given + k * width + i;
      const __m256i lower = _mm256_maddubs_epi16(low, kernel::load(its));
      const __m256i upper = _mm256_maddubs_epi16(high, kernel::load(halves ? its + kBlock : its));
      if constexpr (halves) {
        sums[k] = _mm256_add_epi32(sums[k], _mm256_madd_epi16(_mm256_add_epi16(lower, upper), ones));
      } else {  // 16 * the upper half and the lower one are a code
        const __m256i sixteens = _mm256_madd_epi16(upper, _mm256_set1_epi16(16));
        sums[k] = _mm256_add_epi32(sums[k], _mm256_add_epi32(_mm256_madd_epi16(lower, ones), sixteens));
      }
    }
  }
  const int32_t codes = kernel::total(plain) - added * static_cast<int32_t>(width);
#pragma GCC unroll 8
  for (int k = 0; k < count; ++k) {
    const int64_t at = token + k;
    const int32_t whole = kernel::total(sums[k]) - added * x.sums[at] - x.zeros[at] * codes;
    out[at * rows + row] = static_cast<float>(whole) * (matrix.scale(row) * x.scales[at]);
  }
}

template <int count>
KERNEL_TARGET inline void row_of(Kind kind, const Inputs& x, const Matrix& matrix, int64_t row, int64_t token,
                                 float* out, int64_t rows) {
  switch (kind) {
    case Kind::kBlocks: return row_of_blocks<count>(x, matrix, row, token, out, rows);
    case Kind::kRows4: return row_of_whole<count, Kind::kRows4>(x, matrix, row, token, out, rows);
    case Kind::kRows8: return row_of_whole<count, Kind::kRows8>(x, matrix, row, token, out, rows);
  }
}

// Rows `first` to `last` of all tokens' outputs, (tokens, rows).
KERNEL_TARGET inline void compute(Kind kind, const Inputs& x, const Matrix& matrix, int64_t first, int64_t last,
                                  int64_t rows, float* out) {
  const auto tokens = static_cast<int64_t>(x.scales.size());
  if (tokens == 1 && kind == Kind::kBlocks) return compute_blocks(x, matrix, first, last, out);
  for (int64_t some = first; some < last; some += kRows) {
    const int64_t end = std::min(last, some + kRows);
    int64_t token = 0;
    for (; token + kTokens <= tokens; token += kTokens) {
      for (int64_t row = some; row < end; ++row) row_of<kTokens>(kind, x, matrix, row, token, out, rows);
    }
    for (; token < tokens; ++token) {
      for (int64_t row = some; row < end; ++row) row_of<1>(kind, x, matrix, row, token, out, rows);
    }
  }
}

#else

inline Inputs rounded(const float*, int64_t, int64_t, Kind) { return {}; }
inline void compute(Kind, const Inputs&, const Matrix&, int64_t, int64_t, int64_t, float*) {}

#endif

// (x, codes, scales, out, out): float32 (1, tokens, width); uint8 (rows, width / 2) with bfloat16 (rows, width / 32)
// or float32 (rows), or int8 (rows, width) with float32 (rows); float32 (1, tokens, rows).
inline void call(kernel::Context& context, kernel::Stack stack) {
  using executorch::aten::ScalarType;
  bool right = stack.size() == 5 && kernel::here();
  for (size_t i = 0; right && i < stack.size(); ++i) right = stack[i]->isTensor();
  if (!right) return context.fail(executorch::runtime::Error::InvalidArgument);
  const auto x = stack[0]->toTensor(), codes = stack[1]->toTensor(), scales = stack[2]->toTensor();
  auto out = stack[3]->toTensor();
  const bool halves = codes.scalar_type() == ScalarType::Byte, blocks = scales.scalar_type() == ScalarType::BFloat16;
  const Kind kind = blocks ? Kind::kBlocks : halves ? Kind::kRows4 : Kind::kRows8;
  const int64_t width = x.dim() ? x.size(x.dim() - 1) : 0, tokens = width ? x.numel() / width : 0;
  const int64_t rows = tokens ? out.numel() / tokens : 0;
  right = x.scalar_type() == ScalarType::Float && out.scalar_type() == ScalarType::Float &&
          (halves || (codes.scalar_type() == ScalarType::Char && !blocks)) &&
          (blocks || scales.scalar_type() == ScalarType::Float) && rows > 0 && width % kPair == 0 &&
          out.numel() == rows * tokens && codes.numel() == rows * width / (halves ? 2 : 1) &&
          scales.numel() == rows * (blocks ? width / kBlock : 1);
  if (!right) return context.fail(executorch::runtime::Error::InvalidArgument);
  const Matrix matrix{static_cast<const uint8_t*>(codes.const_data_ptr()), scales.const_data_ptr(), width};
  const Inputs inputs = rounded(x.const_data_ptr<float>(), tokens, width, kind);
  auto* to = out.mutable_data_ptr<float>();
  const auto part = [&](int64_t from, int64_t end) { compute(kind, inputs, matrix, from, end, rows, to); };
  kernel::share(context, rows, width * tokens, part);
}

}  // namespace linear
