// SPDX-License-Identifier: MIT
#include "csrc/ops/backend.h"

#include "csrc/hopper/hopper_attention.h"
#include "csrc/sdpa/sdpa_branch.h"

namespace prulong {

bool may_use_hopper() {
  const char* set = std::getenv("PRULONG_ATTENTION");
  const std::string_view value = set != nullptr ? set : "";
  TORCH_CHECK(value.empty() || value == "sdpa", "environment variable PRULONG_ATTENTION must be sdpa or unset, got '",
              value, "'");
  return value.empty();
}

Backend choose_backend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cu_seqlens, double scale) {
  if (may_use_hopper() && hopper::supports(q, k, cu_seqlens, scale)) return Backend::kHopper;
  return SdpaBranch::supports(q, scale) ? Backend::kSdpa : Backend::kBlocked;
}

}  // namespace prulong
