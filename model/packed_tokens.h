// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace prulong {

/// Tokens of several documents behind one another, each attending only to itself. Made on the host, where bounds and
/// positions are known: a forward pass reads nothing back from a GPU.
struct PackedTokens {
  at::Tensor tokens;      ///< [T] int64, model's device
  at::Tensor positions;   ///< [T] float32, model's device: each token's, from its document's start
  at::Tensor cu_seqlens;  ///< [docs + 1] int32, model's device, 0 .. T
  int64_t max_seqlen = 0;

  /// One document. @param tokens  [T] int64, on the model's device.
  static PackedTokens single(const at::Tensor& tokens);

  /// @param tokens  [T] int64; all members are put on its device.
  /// @param cu_seqlens  [docs + 1], from 0 to T, not decreasing: document d holds tokens [cu_seqlens[d],
  ///                    cu_seqlens[d + 1]).
  /// @throws Error if tokens or bounds are not so.
  static PackedTokens documents(const at::Tensor& tokens, const std::vector<int32_t>& cu_seqlens);
};

}  // namespace prulong
