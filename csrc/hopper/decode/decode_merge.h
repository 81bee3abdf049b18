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

/// Merges the partial results of a list, whose log-sum-exps have base 2, into its outputs. By a warpgroup.
template <class Shape>
PRULONG_DEVICE void merge(const DecodeArguments& a, const Piece& piece, int thread) {
  struct alignas(8) Word2 {
    uint32_t x, y;
  };
  constexpr int kVectors = Shape::kHeadDim / 4;  // a row's
  const int group = a.batch.group(), rows = piece.list.tokens * group;
  for (int i = thread; i < rows * kVectors; i += kWarpgroupThreads) {
    const int row = i / kVectors, vector = i % kVectors;
    float top = -__builtin_inff();
    for (int n = 0; n < piece.pieces; ++n) {
      top = largest(top, load_global(a.partial_lse + partial_row(partial_slot(piece, n), kDecodeRows, row)));
    }
    float total = 0;
    Float4 sums = {0, 0, 0, 0};
    for (int n = 0; n < piece.pieces; ++n) {
      const int64_t at = partial_row(partial_slot(piece, n), kDecodeRows, row);
      const float weight = exp2_fast(load_global(a.partial_lse + at) - top);
      const Float4 part = load_global(reinterpret_cast<const Float4*>(a.partial_out) + at * kVectors + vector);
      total += weight;
      sums.x = fused(weight, part.x, sums.x);
      sums.y = fused(weight, part.y, sums.y);
      sums.z = fused(weight, part.z, sums.z);
      sums.w = fused(weight, part.w, sums.w);
    }
    const float inverse = 1.0f / total;
    const OutputRow place = {piece.list.first_token + row / group, piece.list.kv_head * group + row % group};
    store_global(reinterpret_cast<Word2*>(place.template out<Shape>(a)) + vector,
                 Word2{pack<Shape::kType>(sums.x * inverse, sums.y * inverse),
                       pack<Shape::kType>(sums.z * inverse, sums.w * inverse)});
    if (vector == 0) store_global(place.lse(a), (top + log2_fast(total)) * kLn2);
  }
}

}  // namespace prulong::kernels::decode
