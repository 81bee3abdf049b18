// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/hopper/address.h"
#include "csrc/hopper/decode/decode_arguments.h"
#include "csrc/hopper/decode/decode_plan.h"
#include "csrc/hopper/decode/decode_shape.h"
#include "csrc/hopper/device/arithmetic.h"
#include "csrc/hopper/device/memory.h"

namespace prulong::kernels::decode {

using namespace device;  // NOLINT: the primitives are this code's vocabulary

constexpr float kLn2 = 0.69314718055994531f;

/// Where a row's results go.
struct OutputRow {
  int token, head;

  PRULONG_DEVICE float* lse(const DecodeArguments& a) const { return a.lse + lse_place(a.batch, head, token); }
  /// Two elements a word.
  template <class Shape>
  PRULONG_DEVICE uint32_t* out(const DecodeArguments& a) const {
    return static_cast<uint32_t*>(a.out) + packed_row(token, a.batch.query_heads, head) * (Shape::kHeadDim / 2);
  }
};

/// Merges the partial results of a list, whose log-sum-exps have base 2, into its outputs. By a warpgroup, a warp for a
/// row at a time. There may be as many results as multiprocessors, and they come from far: many loads are in flight.
template <class Shape>
PRULONG_DEVICE void merge(const DecodeArguments& a, const Piece& piece, int thread) {
  struct alignas(8) Word2 {
    uint32_t x, y;
  };
  constexpr int kVectors = Shape::kHeadDim / 4;  // a row's, one for a lane
  constexpr int kAhead = 16;
  const int group = a.batch.group(), rows = piece.list.tokens * group, last = piece.pieces - 1;
  const int lane = thread % kWarpThreads;
  for (int row = thread / kWarpThreads; row < rows; row += kWarpgroupThreads / kWarpThreads) {
    const auto place_of = [&](int n) { return partial_row(partial_slot(piece, n), kDecodeRows, row); };
    float top = -__builtin_inff();
    for (int n = lane; n <= last; n += kWarpThreads) top = largest(top, load_global(a.partial_lse + place_of(n)));
    PRULONG_UNROLL
    for (int mask = kWarpThreads / 2; mask > 0; mask /= 2) top = largest(top, shuffle_xor(top, mask));
    if (lane >= kVectors) continue;
    float total = 0;
    Float4 sums = {0, 0, 0, 0};
    for (int first = 0; first <= last; first += kAhead) {
      float lse[kAhead];
      Float4 part[kAhead];
      PRULONG_UNROLL
      for (int k = 0; k < kAhead; ++k) {
        const int64_t at = place_of(kernels::detail::lesser(first + k, last));
        lse[k] = load_global(a.partial_lse + at);
        part[k] = load_global(reinterpret_cast<const Float4*>(a.partial_out) + at * kVectors + lane);
      }
      PRULONG_UNROLL
      for (int k = 0; k < kAhead; ++k) {
        const float weight = first + k <= last ? exp2_fast(lse[k] - top) : 0.0f;
        total += weight;
        sums.x = fused(weight, part[k].x, sums.x);
        sums.y = fused(weight, part[k].y, sums.y);
        sums.z = fused(weight, part[k].z, sums.z);
        sums.w = fused(weight, part[k].w, sums.w);
      }
    }
    const float inverse = 1.0f / total;
    const OutputRow place = {piece.list.first_token + row / group, piece.list.kv_head * group + row % group};
    store_global(reinterpret_cast<Word2*>(place.template out<Shape>(a)) + lane,
                 Word2{pack<Shape::kType>(sums.x * inverse, sums.y * inverse),
                       pack<Shape::kType>(sums.z * inverse, sums.w * inverse)});
    if (lane == 0) store_global(place.lse(a), (top + log2_fast(total)) * kLn2);
  }
}

}  // namespace prulong::kernels::decode
