// Attention of a language model, over a ring of keys and values: position p is in slot p modulo its length.
//
// XNNPACK looks at every slot, filled or not, and masks what is not seen. This kernel goes from the first position
// that a token sees to its own, so a short text costs little and needs no mask.

#pragma once

#include "kernel.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace attention {

constexpr int64_t kLanes = 8, kHead = 16;  // a head's numbers are a multiple of kHead

// What all tokens share.
struct Memory {
  const float *keys, *values;  // (kv_heads, slots, size)
  int64_t kv_heads, slots, size;
};

#if defined(__x86_64__)

// e^x for x <= 0, to the last two bits; beyond -87 it is 0.
KERNEL_TARGET inline __m256 exponential(__m256 x) {
  const __m256 seen = _mm256_cmp_ps(x, _mm256_set1_ps(-87.0f), _CMP_GE_OQ);
  x = _mm256_max_ps(x, _mm256_set1_ps(-87.0f));
  const __m256 whole = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
  __m256 rest = _mm256_fnmadd_ps(whole, _mm256_set1_ps(0.693145752f), x);  // ln 2 in two parts
  rest = _mm256_fnmadd_ps(whole, _mm256_set1_ps(1.42860677e-6f), rest);
  __m256 sum = _mm256_set1_ps(1.0f / 5040);  // Taylor's: beyond x^7 it is below 1e-8 within ln 2 / 2
  for (const float term : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(term));
  }
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), 23);
  return _mm256_and_ps(_mm256_mul_ps(sum, _mm256_castsi256_ps(power)), seen);
}

// Products of `heads` queries with the keys of `count` slots side by side, (heads, stride) from `scores` on.
template <int heads, int count>
KERNEL_TARGET inline void products(const float* queries, const float* keys, int64_t size, float* scores,
                                   int64_t stride) {
  __m256 sums[heads][count];
#pragma GCC unroll 4
  for (int head = 0; head < heads; ++head) {
#pragma GCC unroll 2
    for (int key = 0; key < count; ++key) sums[head][key] = _mm256_setzero_ps();
  }
  for (int64_t i = 0; i < size; i += kLanes) {
    __m256 some[count];
#pragma GCC unroll 2
    for (int key = 0; key < count; ++key) some[key] = _mm256_loadu_ps(keys + key * size + i);
#pragma GCC unroll 4
    for (int head = 0; head < heads; ++head) {
      const __m256 query = _mm256_loadu_ps(queries + head * size + i);
#pragma GCC unroll 2
      for (int key = 0; key < count; ++key) sums[head][key] = _mm256_fmadd_ps(query, some[key], sums[head][key]);
    }
  }
#pragma GCC unroll 4
  for (int head = 0; head < heads; ++head) {
#pragma GCC unroll 2
    for (int key = 0; key < count; ++key) scores[head * stride + key] = kernel::total(sums[head][key]);
  }
}

// The same for any number of slots.
template <int heads>
KERNEL_TARGET inline void all_products(const float* queries, const float* keys, int64_t size, int64_t count,
                                       float* scores, int64_t stride) {
  int64_t slot = 0;
  for (; slot + 2 <= count; slot += 2) products<heads, 2>(queries, keys + slot * size, size, scores + slot, stride);
  if (slot < count) products<heads, 1>(queries, keys + slot * size, size, scores + slot, stride);
}

// Softmax of so many scores, in place; behind them there is room for a register of more.
KERNEL_TARGET inline void softmax(float* scores, int64_t count) {
  const float most = *std::max_element(scores, scores + count);
  std::fill(scores + count, scores + (count + kLanes - 1) / kLanes * kLanes, -INFINITY);
  __m256 sums = _mm256_setzero_ps();
  for (int64_t i = 0; i < count; i += kLanes) {
    const __m256 some = exponential(_mm256_sub_ps(_mm256_loadu_ps(scores + i), _mm256_set1_ps(most)));
    _mm256_storeu_ps(scores + i, some);
    sums = _mm256_add_ps(sums, some);
  }
  const __m256 share = _mm256_set1_ps(1.0f / kernel::total(sums));
  for (int64_t i = 0; i < count; i += kLanes) {
    _mm256_storeu_ps(scores + i, _mm256_mul_ps(_mm256_loadu_ps(scores + i), share));
  }
}

// Of `heads` heads, 16 numbers of the values' weighted sum, added to what `out` has, (heads, size).
template <int heads>
KERNEL_TARGET inline void weighted(const float* weights, int64_t stride, const float* values, int64_t size,
                                   int64_t count, float* out) {
  __m256 sums[heads][2];
#pragma GCC unroll 4
  for (int head = 0; head < heads; ++head) {
    sums[head][0] = _mm256_loadu_ps(out + head * size);
    sums[head][1] = _mm256_loadu_ps(out + head * size + kLanes);
  }
  for (int64_t at = 0; at < count; ++at, values += size) {
    const __m256 first = _mm256_loadu_ps(values), second = _mm256_loadu_ps(values + kLanes);
#pragma GCC unroll 4
    for (int head = 0; head < heads; ++head) {
      const __m256 weight = _mm256_broadcast_ss(weights + head * stride + at);
      sums[head][0] = _mm256_fmadd_ps(weight, first, sums[head][0]);
      sums[head][1] = _mm256_fmadd_ps(weight, second, sums[head][1]);
    }
  }
#pragma GCC unroll 4
  for (int head = 0; head < heads; ++head) {
    _mm256_storeu_ps(out + head * size, sums[head][0]);
    _mm256_storeu_ps(out + head * size + kLanes, sums[head][1]);
  }
}

// What `heads` query heads of one group look up at the positions `first` to `last`, that one included.
template <int heads>
KERNEL_TARGET inline void look_up(const Memory& memory, int64_t group, const float* queries, int64_t first,
                                  int64_t last, std::vector<float>& scores, float* out) {
  const int64_t size = memory.size, count = last - first + 1;
  const int64_t stride = (count + kLanes - 1) / kLanes * kLanes;
  const int64_t start = first % memory.slots, before = std::min(count, memory.slots - start);  // the ring's end
  scores.resize(heads * stride);
  const float* keys = memory.keys + group * memory.slots * size;
  const float* values = memory.values + group * memory.slots * size;
  all_products<heads>(queries, keys + start * size, size, before, scores.data(), stride);
  all_products<heads>(queries, keys, size, count - before, scores.data() + before, stride);
  for (int head = 0; head < heads; ++head) softmax(scores.data() + head * stride, count);
  std::fill(out, out + heads * size, 0.0f);
  for (int64_t i = 0; i < size; i += kHead) {
    weighted<heads>(scores.data(), stride, values + start * size + i, size, before, out + i);
    weighted<heads>(scores.data() + before, stride, values + i, size, count - before, out + i);
  }
}

// One token: queries and what comes out, (heads, size).
KERNEL_TARGET inline void look_up(const Memory& memory, const float* queries, int64_t heads, int64_t first,
                                  int64_t last, float* out) {
  constexpr int kSome = 4;  // heads side by side
  static thread_local std::vector<float> scores;
  const int64_t group = heads / memory.kv_heads;
  for (int64_t kv = 0; kv < memory.kv_heads; ++kv) {
    int64_t head = 0;
    for (; head + kSome <= group; head += kSome, queries += kSome * memory.size, out += kSome * memory.size) {
      look_up<kSome>(memory, kv, queries, first, last, scores, out);
    }
    for (; head < group; ++head, queries += memory.size, out += memory.size) {
      look_up<1>(memory, kv, queries, first, last, scores, out);
    }
  }
}

#else

inline void look_up(const Memory&, const float*, int64_t, int64_t, int64_t, float*) {}

#endif

// (queries, keys, values, positions, window, out, out): float32 (1, tokens, heads, size), twice (1, kv_heads, slots,
// size), int64 (tokens), how many positions a token sees or 0 for all, float32 (1, tokens, heads * size).
inline void call(kernel::Context& context, kernel::Stack stack) {
  using executorch::aten::ScalarType;
  bool right = stack.size() == 7 && kernel::here() && stack[4]->isInt();
  for (size_t i = 0; right && i < stack.size(); ++i) right = i == 4 || stack[i]->isTensor();
  if (!right) return context.fail(executorch::runtime::Error::InvalidArgument);
  const auto queries = stack[0]->toTensor(), keys = stack[1]->toTensor(), values = stack[2]->toTensor();
  const auto positions = stack[3]->toTensor();
  auto out = stack[5]->toTensor();
  right = queries.dim() == 4 && keys.dim() == 4 && positions.scalar_type() == ScalarType::Long;
  for (const auto& each : {queries, keys, values, out}) right = right && each.scalar_type() == ScalarType::Float;
  if (!right) return context.fail(executorch::runtime::Error::InvalidArgument);
  const int64_t tokens = queries.size(1), heads = queries.size(2), window = stack[4]->toInt();
  const Memory memory{keys.const_data_ptr<float>(), values.const_data_ptr<float>(), keys.size(1), keys.size(2),
                      keys.size(3)};
  const int64_t size = memory.size;
  right = tokens > 0 && heads > 0 && size > 0 && size % kHead == 0 && queries.size(3) == size &&
          memory.kv_heads > 0 && heads % memory.kv_heads == 0 && memory.slots > 0 && values.numel() == keys.numel() &&
          positions.numel() == tokens && out.numel() == queries.numel() && window >= 0;
  if (!right) return context.fail(executorch::runtime::Error::InvalidArgument);
  const auto* from = queries.const_data_ptr<float>();
  auto* to = out.mutable_data_ptr<float>();
  const int64_t position = positions.const_data_ptr<int64_t>()[0];
  const int64_t reach = window > 0 ? std::min(window, memory.slots) : memory.slots;
  if (position < 0) return context.fail(executorch::runtime::Error::InvalidArgument);
  const auto part = [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const int64_t last = position + token, first = std::max<int64_t>(0, last - reach + 1);
      look_up(memory, from + token * heads * size, heads, first, last, to + token * heads * size);
    }
  };
  kernel::share(context, tokens, 2 * heads * size * std::min(position + 1, reach), false, part);
}

}  // namespace attention
