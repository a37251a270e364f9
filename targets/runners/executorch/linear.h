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
constexpr int kTokens = 8, kBeside = 4;  // tokens, and rows of one token, that are computed side by side
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

// Tokens' inputs: for 4 bits those of each 64 with their even places first, as the halves of the codes' bytes are.
//
// For blocks each 64 of a token have a slot. Their zero point is taken off where all of them are within 8 bits without
// it, and only the token's largest ones are not; else the slot's rest is the zero point, for the products to lose it.
struct Inputs {
  int64_t width;
  std::vector<int8_t> codes;
  std::vector<int32_t> eights;  // four for each block: -8 times its sum, since codes lie with 8 added; then zeros
  std::vector<int16_t> rests;
  std::vector<float> scales;
  std::vector<int32_t> zeros, sums;

  // The first slot of a token. Those of kTokens tokens lie side by side; of the last few, one token's after another's.
  int64_t slot(int64_t token) const {
    const int64_t place = token % kTokens, first = token - place;
    return beside(token) == kTokens ? first * (width / kPair) + place : token * (width / kPair);
  }
  // From a slot of a token to its next one.
  int64_t beside(int64_t token) const {
    return token - token % kTokens + kTokens <= static_cast<int64_t>(scales.size()) ? kTokens : 1;
  }
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

// Takes the zero point off 64 codes if they have room for what is left.
KERNEL_TARGET inline bool centred(__m256i (&both)[2], int32_t zero) {
  const __m256i off = _mm256_set1_epi8(static_cast<int8_t>(zero));
  const __m256i less[2] = {_mm256_sub_epi8(both[0], off), _mm256_sub_epi8(both[1], off)};
  const __m256i same = _mm256_and_si256(_mm256_cmpeq_epi8(less[0], _mm256_subs_epi8(both[0], off)),
                                        _mm256_cmpeq_epi8(less[1], _mm256_subs_epi8(both[1], off)));
  if (_mm256_movemask_epi8(same) != -1) return false;
  both[0] = less[0];
  both[1] = less[1];
  return true;
}

// Rounds (tokens, width). The eights are those of the codes less the zero point.
KERNEL_TARGET inline Inputs rounded(const float* x, int64_t tokens, int64_t width, Kind kind) {
  const bool halves = kind != Kind::kRows8, blocks = kind == Kind::kBlocks;
  const int64_t pairs = blocks ? tokens * width / kPair : 0;
  Inputs found{width,
               std::vector<int8_t>(tokens * width),
               std::vector<int32_t>(pairs * 8),
               std::vector<int16_t>(pairs),
               std::vector<float>(tokens),
               std::vector<int32_t>(tokens),
               std::vector<int32_t>(tokens)};
  const __m256i apart = _mm256_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15,  //
                                         0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
  for (int64_t token = 0; token < tokens; ++token, x += width) {
    range(x, width, found.scales[token], found.zeros[token]);
    const __m256 scale = _mm256_set1_ps(found.scales[token]);
    const __m256 zero = _mm256_set1_ps(static_cast<float>(found.zeros[token]));
    const int64_t beside = blocks ? found.beside(token) : 1;
    int64_t slot = blocks ? found.slot(token) : token * width / kPair;
    for (int64_t i = 0; i < width; i += kPair, slot += beside) {
      __m256i both[2] = {rounded(x + i, scale, zero), rounded(x + i + kBlock, scale, zero)};
      for (int half = 0; half < 2; ++half) {
        const int32_t sum = kernel::total(sums_of(both[half]));
        found.sums[token] += sum;
        if (blocks) {
          const int32_t less = static_cast<int32_t>(kBlock) * found.zeros[token];
          found.eights[slot * 8 + 4 * half] = -8 * (sum - less);
        }
      }
      if (blocks) found.rests[slot] = static_cast<int16_t>(centred(both, found.zeros[token]) ? 0 : found.zeros[token]);
      if (halves) {  // even places of the first block and of the second, then the odd ones
        for (auto& each : both) each = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(each, apart), 0xd8);
        const __m256i even = _mm256_permute2x128_si256(both[0], both[1], 0x20);
        both[1] = _mm256_permute2x128_si256(both[0], both[1], 0x31);
        both[0] = even;
      }
      int8_t* to = found.codes.data() + slot * kPair;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), both[0]);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + kBlock), both[1]);
    }
  }
  return found;
}

// Two bfloat16 scales, the first one for the lower half of the lanes.
KERNEL_TARGET inline __m256 pair_of_scales(const uint16_t* scale) {
  int32_t two;
  std::memcpy(&two, scale, sizeof two);
  const __m256i places = _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 0, 1, -1, -1, 0, 1, -1, -1, 0, 1,  //
                                          -1, -1, 2, 3, -1, -1, 2, 3, -1, -1, 2, 3, -1, -1, 2, 3);
  return _mm256_castsi256_ps(_mm256_shuffle_epi8(_mm256_set1_epi32(two), places));
}

// Two blocks of some rows, and of some tokens, from where these point to.
struct Pair {
  const uint8_t* codes;
  const uint16_t* scales;
  int64_t width;
  const int8_t* given;
  const int32_t* eights;
  const int16_t* rests;
};

// Adds their products. A byte has two codes, each plus 8, the first one in its lower half.
template <bool rests, int rows, int tokens>
KERNEL_TARGET __attribute__((always_inline)) inline void add(const Pair& pair, __m256 (&sums)[rows][tokens]) {
  constexpr int kAhead = 4096;  // bytes: codes are asked for so far ahead, beyond the rows side by side; measured
  const __m256i half = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
#pragma GCC unroll 4
  for (int row = 0; row < rows; ++row) {
    const uint8_t* codes = pair.codes + row * (pair.width / 2);
    if (tokens == 1) _mm_prefetch(reinterpret_cast<const char*>(codes) + kAhead, _MM_HINT_T0);
    const __m256i both = kernel::load(codes);
    const __m256i even = _mm256_and_si256(both, half);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi16(both, 4), half);
    const __m256 scales = pair_of_scales(pair.scales + row * (pair.width / kBlock));
    const __m256i plain = _mm256_maddubs_epi16(_mm256_add_epi8(even, odd), _mm256_set1_epi8(1));
#pragma GCC unroll 8
    for (int token = 0; token < tokens; ++token) {
      const int8_t* given = pair.given + token * kPair;
      __m256i products = _mm256_add_epi16(_mm256_maddubs_epi16(even, kernel::load(given)),
                                          _mm256_maddubs_epi16(odd, kernel::load(given + kBlock)));
      // 15 * 128 * 4 and the zero point's share are within 16 bits together; floats would cancel
      if (rests) products = _mm256_sub_epi16(products, _mm256_mullo_epi16(plain, _mm256_set1_epi16(pair.rests[token])));
      const __m256i whole = _mm256_add_epi32(_mm256_madd_epi16(products, ones), kernel::load(pair.eights + token * 8));
      sums[row][token] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), scales, sums[row][token]);
    }
  }
}

// The outputs of some rows for some tokens, blocks.
template <int rows, int tokens>
KERNEL_TARGET inline void tile_of_blocks(const Inputs& x, const Matrix& matrix, int64_t row, int64_t token, float* out,
                                         int64_t stride) {
  const int64_t slot = x.slot(token), beside = x.beside(token);
  Pair pair{};
  pair.codes = matrix.codes + row * (matrix.width / 2);
  pair.scales = matrix.block_scales(row);
  pair.width = matrix.width;
  pair.given = x.codes.data() + slot * kPair;
  pair.eights = x.eights.data() + slot * 8;
  pair.rests = x.rests.data() + slot;
  __m256 sums[rows][tokens];
#pragma GCC unroll 4
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 8
    for (int k = 0; k < tokens; ++k) sums[i][k] = _mm256_setzero_ps();
  }
  for (int64_t left = matrix.width; left > 0; left -= kPair) {
    uint64_t any[2] = {};
    std::memcpy(any, pair.rests, tokens * sizeof(int16_t));
    if (any[0] | any[1]) {
      add<true>(pair, sums);
    } else {
      add<false>(pair, sums);
    }
    pair.codes += kPair / 2;
    pair.scales += 2;
    pair.given += beside * kPair;
    pair.eights += beside * 8;
    pair.rests += beside;
  }
#pragma GCC unroll 4
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 8
    for (int k = 0; k < tokens; ++k) {
      out[(token + k) * stride + row + i] = kernel::total(sums[i][k]) * x.scales[token + k];
    }
  }
}

// Of a row, the outputs of `count` tokens from `token` on, a scale per row.
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
    case Kind::kBlocks: return tile_of_blocks<1, count>(x, matrix, row, token, out, rows);
    case Kind::kRows4: return row_of_whole<count, Kind::kRows4>(x, matrix, row, token, out, rows);
    case Kind::kRows8: return row_of_whole<count, Kind::kRows8>(x, matrix, row, token, out, rows);
  }
}

// Rows `first` to `last` of all tokens' outputs, (tokens, rows).
KERNEL_TARGET inline void compute(Kind kind, const Inputs& x, const Matrix& matrix, int64_t first, int64_t last,
                                  int64_t rows, float* out) {
  const auto tokens = static_cast<int64_t>(x.scales.size());
  for (int64_t some = first; some < last; some += kRows) {
    const int64_t end = std::min(last, some + kRows);
    int64_t token = 0;
    for (; token + kTokens <= tokens; token += kTokens) {
      for (int64_t row = some; row < end; ++row) row_of<kTokens>(kind, x, matrix, row, token, out, rows);
    }
    for (; token < tokens; ++token) {
      int64_t row = some;
      for (; kind == Kind::kBlocks && row + kBeside <= end; row += kBeside) {
        tile_of_blocks<kBeside, 1>(x, matrix, row, token, out, rows);
      }
      for (; row < end; ++row) row_of<1>(kind, x, matrix, row, token, out, rows);
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
  kernel::share(context, rows, width * tokens, tokens == 1, part);
}

}  // namespace linear
