// SPDX-License-Identifier: MIT
#include "csrc/cpu/row_products.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace prulong {
namespace {

// A depth above kLargestDepth is summed in parts of about kPartDepth, so that a tile's operands stay in the first-level
// cache: all tiles of a block go through one part, and put their sums aside for the next.
constexpr int64_t kLargestDepth = 1152, kPartDepth = 768;
constexpr int64_t kBlockRows = 128, kBlockOutputs = 24;
// Without parts: rows that stay in the second-level cache while all of w passes by.
constexpr int64_t kCachedRows = 256;

/// How a kernel computes: sums of kLanes lanes over depth, for tiles of kRows rows by kOutputs outputs, as many sums as
/// its registers hold.
template <int kBytes>
struct Shape {
  using Floats = Vector<float, kBytes>;
  static constexpr int64_t kLanes = kBytes / sizeof(float);
  static constexpr int64_t kRows = kBytes == 64 ? 4 : 3, kOutputs = kBytes == 64 ? 6 : 4;
  static_assert(kOutputPanel % kOutputs == 0 && kBlockOutputs % kOutputs == 0);
};

/// Where a tile's operands are: row r of x begins at x + r * depth, output c's weights at w + c * depth.
struct Operands {
  const float* x;
  const float* w;
  int64_t depth;
};

/// sums[r, c] += lanes of x[r, k] * w[c, k] for k from begin to end, a multiple of the lanes apart.
template <typename S, int64_t R, int64_t C>
PRULONG_INLINE void accumulate(typename S::Floats (&sums)[R * C], const Operands& at, int64_t begin, int64_t end) {
  typename S::Floats x[R];
  for (int64_t k = begin; k < end; k += S::kLanes) {
#pragma GCC unroll 16
    for (int64_t r = 0; r < R; ++r) x[r] = load_lanes<typename S::Floats>(at.x + r * at.depth + k);
#pragma GCC unroll 16
    for (int64_t c = 0; c < C; ++c) {
      const auto w = load_lanes<typename S::Floats>(at.w + c * at.depth + k);
#pragma GCC unroll 16
      for (int64_t r = 0; r < R; ++r) sums[r * C + c] = multiply_add(sums[r * C + c], x[r], w);
    }
  }
}

/// The same for the last few k, fewer than the lanes, with zeros behind them.
template <typename S, int64_t R, int64_t C>
PRULONG_INLINE void accumulate_tail(typename S::Floats (&sums)[R * C], const Operands& at, int64_t begin) {
  float x[R][S::kLanes] = {}, w[C][S::kLanes] = {};
  for (int64_t k = begin; k < at.depth; ++k) {
    for (int64_t r = 0; r < R; ++r) x[r][k - begin] = at.x[r * at.depth + k];
    for (int64_t c = 0; c < C; ++c) w[c][k - begin] = at.w[c * at.depth + k];
  }
  accumulate<S, R, C>(sums, {x[0], w[0], S::kLanes}, 0, S::kLanes);
}

/// Of two registers that hold segments of kLength lanes: adds each segment's halves. Result: a's first segment, b's
/// first, a's second, and so on, half as long.
template <typename Floats, int64_t kLength, int64_t... kLane>
PRULONG_INLINE Floats add_halves(Floats a, Floats b, std::integer_sequence<int64_t, kLane...>) {
  constexpr int64_t kHalf = kLength / 2, kLanes = sizeof...(kLane);
  // [a low, b high] + [a high, b low]: one blend and one shuffle.
  return __builtin_shufflevector(a, b, (kLane % kLength < kHalf ? kLane : kLane + kLanes)...) +
         __builtin_shufflevector(a, b, (kLane % kLength < kHalf ? kLane + kHalf : kLane + kLanes - kHalf)...);
}

/// Adds up each sum's lanes, halves first: ((0 + 8) + (4 + 12)) + ... of 16. Total i is left at place_of(i).
template <typename S, int64_t kCount, int64_t kLength = S::kLanes>
PRULONG_INLINE void add_lanes(const typename S::Floats (&sums)[kCount], float* totals) {
  if constexpr (kLength == 1) {
    std::memcpy(totals, sums, sizeof(sums));
  } else {
    constexpr int64_t kPairs = (kCount + 1) / 2;
    typename S::Floats halves[kPairs];
#pragma GCC unroll 32
    for (int64_t i = 0; i < kPairs; ++i) {
      halves[i] = add_halves<typename S::Floats, kLength>(sums[i], sums[i + kPairs < kCount ? i + kPairs : i],
                                                          std::make_integer_sequence<int64_t, S::kLanes>());
    }
    add_lanes<S, kPairs, kLength / 2>(halves, totals);
  }
}

constexpr int64_t place_of(int64_t sum, int64_t count, int64_t lanes) {
  int64_t segment = 0;
  for (int64_t length = lanes; length > 1; length /= 2) {
    const int64_t pairs = (count + 1) / 2;
    segment = 2 * segment + sum / pairs;
    sum %= pairs;
    count = pairs;
  }
  return sum * lanes + segment;
}

/// One part of the depth.
struct Part {
  int64_t begin, end;
  bool first, last;
};

/// R rows by C outputs of the product. `aside`: the sums between parts.
template <typename S, int64_t R, int64_t C>
PRULONG_INLINE void tile(const RowProducts& p, int64_t row, int64_t output, const Part& part,
                         typename S::Floats* aside) {
  typename S::Floats sums[R * C] = {};
  const Operands at = {p.x + row * p.depth, p.w + output * p.depth, p.depth};
  if (!part.first) std::memcpy(sums, aside, sizeof(sums));
  const int64_t whole = part.begin + (part.end - part.begin) / S::kLanes * S::kLanes;
  accumulate<S, R, C>(sums, at, part.begin, whole);
  if (!part.last) {
    std::memcpy(aside, sums, sizeof(sums));
    return;
  }
  if (whole < part.end) accumulate_tail<S, R, C>(sums, at, whole);
  float totals[(R * C + S::kLanes - 1) / S::kLanes * S::kLanes];
  add_lanes<S, R * C>(sums, totals);
#pragma GCC unroll 8
  for (int64_t r = 0; r < R; ++r) {
    float* const out = p.out + (row + r) * p.outputs + output;
#pragma GCC unroll 8
    for (int64_t c = 0; c < C; ++c) {
      const float total = totals[place_of(r * C + c, R * C, S::kLanes)];
      out[c] = p.bias ? total + p.bias[output + c] : total;
    }
  }
}

/// The last rows, at most R.
template <typename S, int64_t R, int64_t C>
PRULONG_INLINE void last_rows(const RowProducts& p, int64_t row, int64_t count, int64_t output, const Part& part,
                              typename S::Floats* aside) {
  if constexpr (R > 0) {
    if (count == R) {
      tile<S, R, C>(p, row, output, part, aside);
    } else {
      last_rows<S, R - 1, C>(p, row, count, output, part, aside);
    }
  }
}

/// C outputs of rows [begin, end).
template <typename S, int64_t C>
PRULONG_INLINE void panel(const RowProducts& p, int64_t begin, int64_t end, int64_t output, const Part& part,
                          typename S::Floats* aside) {
  int64_t row = begin;
  for (; row + S::kRows <= end; row += S::kRows, aside += S::kRows * C) {
    tile<S, S::kRows, C>(p, row, output, part, aside);
  }
  last_rows<S, S::kRows - 1, C>(p, row, end - row, output, part, aside);
}

struct Products {
  template <int kBytes>
  PRULONG_INLINE static void run(const RowProducts& p, int64_t row_begin, int64_t row_end, int64_t output_begin,
                                 int64_t output_end) {
    using S = Shape<kBytes>;
    typename S::Floats aside[kBlockRows * kBlockOutputs];
    const bool parted = p.depth > kLargestDepth && row_end - row_begin > S::kRows;  // else nothing is used twice
    const int64_t parts = parted ? (p.depth + kPartDepth - 1) / kPartDepth : 1;
    const int64_t part_depth = (p.depth / parts + S::kLanes) / S::kLanes * S::kLanes;
    const int64_t rows = parted ? kBlockRows : kCachedRows;
    for (int64_t row = row_begin; row < row_end; row += rows) {
      const int64_t end = std::min(row + rows, row_end);
      for (int64_t output = output_begin; output < output_end; output += kBlockOutputs) {
        const int64_t block_end = std::min(output + kBlockOutputs, output_end);
        for (int64_t k = 0; k == 0 || k < p.depth; k += part_depth) {
          const Part part = {k, std::min(k + part_depth, p.depth), k == 0, k + part_depth >= p.depth};
          typename S::Floats* put = aside;
          int64_t o = output;
          for (; o + S::kOutputs <= block_end; o += S::kOutputs, put += kBlockRows * S::kOutputs) {
            panel<S, S::kOutputs>(p, row, end, o, part, put);
          }
          for (; o < block_end; ++o, put += kBlockRows) panel<S, 1>(p, row, end, o, part, put);
        }
      }
    }
  }
};

}  // namespace

void row_products(Isa isa, const RowProducts& product, int64_t row_begin, int64_t row_end, int64_t output_begin,
                  int64_t output_end) {
  run_kernel<Products>(isa, product, row_begin, row_end, output_begin, output_end);
}

}  // namespace prulong
