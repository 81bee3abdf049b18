// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/hopper/device/arithmetic.h"
#include "csrc/hopper/device/thread.h"
#include "csrc/hopper/device/wgmma.h"
#include "csrc/tile.h"

namespace prulong::kernels {

/// A thread's scores: rows lane / 4 and lane / 4 + 8 of its warp's 16, of 128 keys.
using Scores = device::Accumulator<kKeyBlock>;

/// The keys that a query row sees: j <= last and (j >= first or j < always).
struct KeyLimits {
  int last, first, always;
};
PRULONG_HOST_DEVICE KeyLimits key_limits(Branch branch, Locality locality, int position) {
  if (branch == Branch::kGlobal) return {position, 0, 0};
  if (branch == Branch::kLocal) return {position, position - locality.window + 1, locality.sink};
  return {position - locality.window, locality.sink, 0};
}

namespace detail {
/// Which of a thread's 32 columns 8 (n / 2) + n mod 2 of a row are below `limit`: bit n.
PRULONG_HOST_DEVICE uint32_t columns_below(int limit) {
  limit = lesser(greater(limit, 0), kKeyBlock);
  const int count = limit / 8 * 2 + lesser(limit % 8, 2);
  return count == 32 ? 0xffffffffu : (1u << count) - 1;
}
}  // namespace detail

/// Makes the scores of invisible keys -inf. limits: of the thread's two rows; first_key: of the block.
template <int kColumns>
PRULONG_DEVICE void mask_scores(device::Accumulator<kColumns>& scores, const KeyLimits (&limits)[2], int first_key) {
  const int first_column = first_key + 2 * (device::lane_index() % 4);
  uint32_t visible[2];
  PRULONG_UNROLL
  for (int r = 0; r < 2; ++r) {
    visible[r] = detail::columns_below(limits[r].last + 1 - first_column) &
                 (~detail::columns_below(limits[r].first - first_column) |
                  detail::columns_below(limits[r].always - first_column));
  }
  PRULONG_UNROLL
  for (int i = 0; i < device::Accumulator<kColumns>::kSize; ++i) {
    const int bit = i / 4 * 2 + i % 2;
    if ((visible[i / 2 % 2] >> bit & 1) == 0) scores[i] = -__builtin_inff();
  }
}

/// Running softmax of a thread's two rows. scale: of raw scores, times log2(e); positive.
struct Softmax {
  /// Stands for "no key yet": finite, so that differences of maxima are never NaN.
  static constexpr float kLowest = -1e36f;
  /// The maximum may lag this much, in powers of two: weights stay below 2^8 and sums are rarely rescaled.
  static constexpr float kLag = 8.0f;

  float maximum[2] = {kLowest, kLowest};
  float sum[2] = {0, 0};         // of the thread's own columns
  float correction[2] = {1, 1};  // of what was summed before the latest update

  /// Takes scores in. Returns whether any row of the warp needs its sums corrected.
  template <int kColumns>
  PRULONG_DEVICE bool take(const device::Accumulator<kColumns>& scores, float scale) {
    float top[2][2] = {{kLowest, kLowest}, {kLowest, kLowest}};
    PRULONG_UNROLL
    for (int i = 0; i < device::Accumulator<kColumns>::kSize; ++i) {
      top[i / 2 % 2][i % 2] = device::largest(top[i / 2 % 2][i % 2], scores[i]);
    }
    bool moved = false;
    PRULONG_UNROLL
    for (int r = 0; r < 2; ++r) {
      float next = device::largest(top[r][0], top[r][1]);
      next = device::largest(next, device::shuffle_xor(next, 1));
      next = device::largest(next, device::shuffle_xor(next, 2));
      const bool moves = (next - maximum[r]) * scale > kLag;
      next = moves ? next : maximum[r];
      correction[r] = device::exp2_fast((maximum[r] - next) * scale);
      maximum[r] = next;
      moved |= moves;
    }
    return device::any(moved);
  }

  /// Turns the scores taken last into weights.
  template <int kColumns>
  PRULONG_DEVICE void weigh(device::Accumulator<kColumns>& scores, float scale) {
    const float shift[2] = {-maximum[0] * scale, -maximum[1] * scale};
    PRULONG_UNROLL
    for (int r = 0; r < 2; ++r) sum[r] *= correction[r];
    PRULONG_UNROLL
    for (int i = 0; i < device::Accumulator<kColumns>::kSize; ++i) {
      const int r = i / 2 % 2;
      scores[i] = device::exp2_fast(device::fused(scores[i], scale, shift[r]));
      sum[r] += scores[i];
    }
  }

  template <int kColumns>
  PRULONG_DEVICE void correct(device::Accumulator<kColumns>& sums) const {
    PRULONG_UNROLL
    for (int i = 0; i < device::Accumulator<kColumns>::kSize; ++i) sums[i] *= correction[i / 2 % 2];
  }
};

}  // namespace prulong::kernels
