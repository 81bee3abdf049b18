// SPDX-License-Identifier: MIT
#include "csrc/cpu/row_products.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace prulong {
namespace {

// Bytes of x and of partial sums that stay in the second-level cache while all of w passes by.
constexpr int64_t kCachedBytes = int64_t{1} << 20;
// Steps over depth between which partial sums are put aside, so that a tile's operands stay in the first-level cache.
constexpr int64_t kDepthPart = 768;
constexpr int64_t kRowChunk = 128;  // rows whose partial sums are put aside

/// How a kernel computes: sums of kLanes lanes over depth, for tiles of kRows rows by kOutputs outputs, as many sums as
/// its registers hold.
template <int kBytes>
struct Shape {
  using Floats = Vector<float, kBytes>;
  static constexpr int64_t kLanes = kBytes / sizeof(float);
  static constexpr int64_t kRows = kBytes == 64 ? 4 : 3, kOutputs = kBytes == 64 ? 6 : 4;
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
      for (int64_t r = 0; r < R; ++r) sums[r * C + c] += x[r] * w;
    }
  }
}

/// The same for the last few k, fewer than the lanes, with zeros behind them.
template <typename S, int64_t R, int64_t C>
PRULONG_INLINE void accumulate_tail(typename S::Floats (&sums)[R * C], const Operands& at, int64_t begin) {
  float padded[R + C][S::kLanes] = {};
  for (int64_t k = begin; k < at.depth; ++k) {
    for (int64_t r = 0; r < R; ++r) padded[r][k - begin] = at.x[r * at.depth + k];
    for (int64_t c = 0; c < C; ++c) padded[R + c][k - begin] = at.w[c * at.depth + k];
  }
  for (int64_t r = 0; r < R; ++r) {
    const auto x = load_lanes<typename S::Floats>(padded[r]);
    for (int64_t c = 0; c < C; ++c) {
      const auto w = load_lanes<typename S::Floats>(padded[R + c]);
      sums[r * C + c] += x * w;
    }
  }
}

/// a and b hold segments of `length` lanes: adds each segment's upper half to its lower; a's results, then b's.
template <typename Floats, int64_t kLength, int64_t... kLane>
PRULONG_INLINE void fold(Floats& a, Floats b, std::integer_sequence<int64_t, kLane...>) {
  constexpr int64_t kHalf = kLength / 2;
  a = __builtin_shufflevector(a, b, (kLane / kHalf * kLength + kLane % kHalf)...) +
      __builtin_shufflevector(a, b, (kLane / kHalf * kLength + kLane % kHalf + kHalf)...);
}

/// totals[i] = the lanes of sums[i] added up, halves first: ((0 + 8) + (4 + 12)) + ... for 16 lanes.
template <typename S, int64_t kCount, int64_t kLength = S::kLanes>
PRULONG_INLINE void add_lanes(typename S::Floats* sums, float* totals) {
  if constexpr (kLength == 1) {
    std::memcpy(totals, sums, kCount * sizeof(*sums));
  } else {
#pragma GCC unroll 32
    for (int64_t i = 0; i < kCount; i += 2) {
      if (i > 0) sums[i / 2] = sums[i];
      fold<typename S::Floats, kLength>(sums[i / 2], sums[std::min(i + 1, kCount - 1)],
                                        std::make_integer_sequence<int64_t, S::kLanes>());
    }
    add_lanes<S, (kCount + 1) / 2, kLength / 2>(sums, totals);
  }
}

/// A part of the depth, and the partial sums of a panel of outputs that earlier parts left and later ones need.
struct Part {
  int64_t begin, end;
  bool first, last;
};

template <typename S, int64_t R, int64_t C>
PRULONG_INLINE void tile(const RowProducts& p, int64_t row, int64_t output, const Part& part, float* partial) {
  typename S::Floats sums[R * C] = {};
  const Operands at = {p.x + row * p.depth, p.w + output * p.depth, p.depth};
  if (!part.first) std::memcpy(sums, partial, sizeof(sums));
  const int64_t whole = part.begin + (part.end - part.begin) / S::kLanes * S::kLanes;
  accumulate<S, R, C>(sums, at, part.begin, whole);
  if (!part.last) {
    std::memcpy(partial, sums, sizeof(sums));
    return;
  }
  if (whole < part.end) accumulate_tail<S, R, C>(sums, at, whole);
  float totals[(R * C + S::kLanes - 1) / S::kLanes * S::kLanes];
  add_lanes<S, R * C>(sums, totals);
  for (int64_t r = 0; r < R; ++r) {
    float* out = p.out + (row + r) * p.outputs + output;
    for (int64_t c = 0; c < C; ++c) out[c] = p.bias ? totals[r * C + c] + p.bias[output + c] : totals[r * C + c];
  }
}

/// The last rows, at most R.
template <typename S, int64_t R, int64_t C>
PRULONG_INLINE void last_rows(const RowProducts& p, int64_t row, int64_t count, int64_t output, const Part& part,
                              float* partial) {
  if constexpr (R > 0) {
    if (count == R) {
      tile<S, R, C>(p, row, output, part, partial);
    } else {
      last_rows<S, R - 1, C>(p, row, count, output, part, partial);
    }
  }
}

/// C outputs of rows [begin, end).
template <typename S, int64_t C>
PRULONG_INLINE void panel(const RowProducts& p, int64_t begin, int64_t end, int64_t output, int64_t part_depth,
                          float* partial) {
  for (int64_t k = 0; k == 0 || k < p.depth; k += part_depth) {
    const Part part = {k, std::min(k + part_depth, p.depth), k == 0, k + part_depth >= p.depth};
    int64_t row = begin;
    for (; row + S::kRows <= end; row += S::kRows) {
      tile<S, S::kRows, C>(p, row, output, part, partial + (row - begin) * C * S::kLanes);
    }
    last_rows<S, S::kRows - 1, C>(p, row, end - row, output, part, partial + (row - begin) * C * S::kLanes);
  }
}

struct Products {
  template <int kBytes>
  PRULONG_INLINE static void run(const RowProducts& p, int64_t row_begin, int64_t row_end, int64_t output_begin,
                                 int64_t output_end) {
    using S = Shape<kBytes>;
    alignas(64) float partial[kRowChunk * S::kOutputs * S::kLanes];
    int64_t chunk =
        std::max(kCachedBytes / static_cast<int64_t>(sizeof(float)) / std::max<int64_t>(p.depth, 1), 4 * S::kRows);
    // Rows of one tile need no parts.
    const bool parted = p.depth > kDepthPart * 3 / 2 && row_end - row_begin > S::kRows;
    const int64_t parts = parted ? (p.depth + kDepthPart - 1) / kDepthPart : 1;
    const int64_t part_depth = (p.depth / parts + S::kLanes) / S::kLanes * S::kLanes;
    if (parted) chunk = std::min(chunk, kRowChunk);
    for (int64_t row = row_begin; row < row_end; row += chunk) {
      const int64_t end = std::min(row + chunk, row_end);
      int64_t output = output_begin;
      for (; output + S::kOutputs <= output_end; output += S::kOutputs) {
        panel<S, S::kOutputs>(p, row, end, output, part_depth, partial);
      }
      for (; output < output_end; ++output) panel<S, 1>(p, row, end, output, part_depth, partial);
    }
  }
};

}  // namespace

void row_products(Isa isa, const RowProducts& product, int64_t row_begin, int64_t row_end, int64_t output_begin,
                  int64_t output_end) {
  run_kernel<Products>(isa, product, row_begin, row_end, output_begin, output_end);
}

}  // namespace prulong
