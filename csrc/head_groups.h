// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "csrc/attention_spec.h"

namespace prulong {

/// KV heads of one kind that are computed together.
struct HeadGroup {
  HeadKind kind;
  std::vector<int64_t> heads;  // ascending
};

/// On the CPU every head is its own group (workers share out heads and tiles); on CUDA all heads of a kind are one.
std::vector<HeadGroup> group_heads(const std::vector<HeadKind>& kinds, bool cuda);

/// Heads of `whole` along `dim`: a view where they are adjacent, else a copy.
at::Tensor take_heads(const at::Tensor& whole, int64_t dim, const std::vector<int64_t>& heads);

/// Some heads of a tensor to be written: `part` is a view of `whole` where the heads are adjacent, else a copy that
/// write_back() copies into place.
class HeadSlice {
 public:
  HeadSlice(const at::Tensor& whole, int64_t dim, const std::vector<int64_t>& heads);
  const at::Tensor& part() const { return part_; }
  void write_back() const;

 private:
  at::Tensor whole_, part_;
  int64_t dim_;
  std::vector<int64_t> heads_;
};

/// [T, Hkv * g, D] as [T, Hkv, g, D].
at::Tensor split_query_heads(const at::Tensor& q, int64_t kv_heads);

}  // namespace prulong
