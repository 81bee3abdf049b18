// SPDX-License-Identifier: MIT
#include "csrc/head_groups.h"

#include <ATen/ops/index_select.h>
#include <ATen/ops/tensor.h>

namespace prulong {
namespace {

bool adjacent(const std::vector<int64_t>& heads) {
  return heads.back() - heads.front() + 1 == static_cast<int64_t>(heads.size());
}

at::Tensor index_of(const at::Tensor& whole, const std::vector<int64_t>& heads) {
  return at::tensor(heads, at::TensorOptions().dtype(at::kLong)).to(whole.device());
}

}  // namespace

std::vector<HeadGroup> group_heads(const std::vector<HeadKind>& kinds, bool cuda) {
  std::vector<HeadGroup> groups;
  if (!cuda) {
    for (size_t h = 0; h < kinds.size(); ++h) groups.push_back({kinds[h], {static_cast<int64_t>(h)}});
    return groups;
  }
  for (const HeadKind kind : {HeadKind::kGlobal, HeadKind::kFractional, HeadKind::kLocal}) {
    HeadGroup group{kind, {}};
    for (size_t h = 0; h < kinds.size(); ++h) {
      if (kinds[h] == kind) group.heads.push_back(static_cast<int64_t>(h));
    }
    if (!group.heads.empty()) groups.push_back(group);
  }
  return groups;
}

at::Tensor take_heads(const at::Tensor& whole, int64_t dim, const std::vector<int64_t>& heads) {
  if (adjacent(heads)) return whole.narrow(dim, heads.front(), static_cast<int64_t>(heads.size()));
  return at::index_select(whole, dim, index_of(whole, heads));
}

HeadSlice::HeadSlice(const at::Tensor& whole, int64_t dim, const std::vector<int64_t>& heads)
    : whole_(whole), part_(take_heads(whole, dim, heads)), dim_(dim), heads_(heads) {}

void HeadSlice::write_back() const {
  if (!adjacent(heads_)) at::Tensor(whole_).index_copy_(dim_, index_of(whole_, heads_), part_);
}

at::Tensor split_query_heads(const at::Tensor& q, int64_t kv_heads) {
  return q.unflatten(1, {kv_heads, q.size(1) / kv_heads});
}

}  // namespace prulong
