// SPDX-License-Identifier: MIT
#include "model/packed_tokens.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <string>

#include "common/error.h"

namespace prulong {

PackedTokens PackedTokens::single(const at::Tensor& tokens) {
  return documents(tokens, {0, static_cast<int32_t>(tokens.numel())});
}

PackedTokens PackedTokens::documents(const at::Tensor& tokens, const std::vector<int32_t>& cu_seqlens) {
  if (tokens.dim() != 1 || tokens.scalar_type() != at::kLong) {
    throw Error("tokens must be one row of int64, found " + std::to_string(tokens.dim()) + " dimension(s) of " +
                c10::toString(tokens.scalar_type()) + "; give one packed sequence");
  }
  const int64_t total = tokens.size(0);
  const auto refuse = [&](const std::string& found) {
    throw Error("cu_seqlens must rise from 0 to " + std::to_string(total) + ", found " + found +
                "; give the documents' bounds");
  };
  if (cu_seqlens.size() < 2) refuse(std::to_string(cu_seqlens.size()) + " bound(s)");
  if (cu_seqlens.front() != 0 || cu_seqlens.back() != total) {
    refuse(std::to_string(cu_seqlens.front()) + " and " + std::to_string(cu_seqlens.back()) + " at its ends");
  }
  const auto bounds = at::empty({static_cast<int64_t>(cu_seqlens.size())}, at::kInt);
  std::copy(cu_seqlens.begin(), cu_seqlens.end(), bounds.mutable_data_ptr<int32_t>());
  const auto positions = at::empty({total}, at::kFloat);
  auto* position = positions.mutable_data_ptr<float>();
  int64_t longest = 0;
  for (size_t d = 0; d + 1 < cu_seqlens.size(); ++d) {
    const int64_t begin = cu_seqlens[d], end = cu_seqlens[d + 1];
    if (end < begin || end > total) {
      refuse("document " + std::to_string(d) + " from " + std::to_string(begin) + " to " + std::to_string(end));
    }
    longest = std::max(longest, end - begin);
    for (int64_t t = begin; t < end; ++t) position[t] = static_cast<float>(t - begin);
  }
  return {tokens, positions.to(tokens.device()), bounds.to(tokens.device()), longest};
}

}  // namespace prulong
