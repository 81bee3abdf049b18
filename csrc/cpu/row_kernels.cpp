// SPDX-License-Identifier: MIT
#include "csrc/cpu/row_kernels.h"

#include <cstring>
#include <limits>

#include "csrc/cpu/exponential.h"

// One build serves every x86-64: the loader picks the widest version that the processor has.
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
#define PRULONG_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PRULONG_CLONES
#endif

namespace prulong {
namespace {

constexpr int64_t kLanes = 8;
using Floats = float __attribute__((vector_size(kLanes * sizeof(float))));

PRULONG_INLINE void load(Floats& x, const float* from) { std::memcpy(&x, from, sizeof(x)); }
PRULONG_INLINE void store(const Floats& x, float* to) { std::memcpy(to, &x, sizeof(x)); }

PRULONG_INLINE float exponential_of(float x) { return exponential(Floats{} + x)[0]; }

PRULONG_INLINE float largest(const float* row, int64_t columns) {
  const float lowest = -std::numeric_limits<float>::infinity();
  Floats lanes = Floats{} + lowest;
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes) {
    Floats x;
    load(x, row + c);
    lanes = x > lanes ? x : lanes;
  }
  float result = lowest;
  for (int64_t i = 0; i < kLanes; ++i) result = lanes[i] > result ? lanes[i] : result;
  for (; c < columns; ++c) result = row[c] > result ? row[c] : result;
  return result;
}

// row = exp(row - shift); returns the sum.
PRULONG_INLINE float exp_row(float* row, int64_t columns, float shift) {
  Floats sums = {};
  int64_t c = 0;
  for (; c + kLanes <= columns; c += kLanes) {
    Floats x;
    load(x, row + c);
    x -= shift;
    x = exponential(x);
    sums += x;
    store(x, row + c);
  }
  float sum = 0;
  if (c < columns) {
    Floats x = Floats{} - std::numeric_limits<float>::infinity();
    const auto bytes = static_cast<size_t>(columns - c) * sizeof(float);
    std::memcpy(&x, row + c, bytes);
    x -= shift;
    x = exponential(x);
    sums += x;
    std::memcpy(row + c, &x, bytes);
  }
  for (int64_t i = 0; i < kLanes; ++i) sum += sums[i];
  return sum;
}

}  // namespace

PRULONG_CLONES void softmax_rows(float* scores, int64_t rows, int64_t columns, bool first, float* maximum, float* sum,
                                 float* shrink) {
  for (int64_t r = 0; r < rows; ++r) {
    float* row = scores + r * columns;
    float m = largest(row, columns);
    if (!first) {
      m = m > maximum[r] ? m : maximum[r];
      shrink[r] = exponential_of(maximum[r] - m);
    }
    const float row_sum = exp_row(row, columns, m);
    sum[r] = first ? row_sum : sum[r] * shrink[r] + row_sum;
    maximum[r] = m;
  }
}

PRULONG_CLONES void exp_rows(float* scores, int64_t rows, int64_t columns, const float* lam) {
  for (int64_t r = 0; r < rows; ++r) exp_row(scores + r * columns, columns, lam[r]);
}

PRULONG_CLONES void score_gradient_rows(float* p, const float* dp, int64_t rows, int64_t columns, const float* mean) {
  for (int64_t r = 0; r < rows; ++r) {
    float* row = p + r * columns;
    const float* gradient = dp + r * columns;
    for (int64_t c = 0; c < columns; ++c) row[c] *= gradient[c] - mean[r];
  }
}

}  // namespace prulong
