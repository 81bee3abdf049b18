// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdlib>
#include <string_view>

#include "csrc/attention_spec.h"

namespace prulong {

/// Who computes attention: our kernels for Hopper GPUs (csrc/hopper), PyTorch's own CUDA kernels (csrc/sdpa), or tiles
/// of ATen operators, on any device (csrc/cpu).
enum class Backend { kHopper, kSdpa, kBlocked };

/// Whether our kernels for Hopper GPUs may be used: not if the environment variable PRULONG_ATTENTION is sdpa.
/// @throws c10::Error if it is anything else.
bool may_use_hopper();

/// The first of these backends that can compute such tensors, already checked for shape, dtype and device. The
/// environment variable PRULONG_ATTENTION=sdpa leaves our kernels for Hopper GPUs out, to measure or to doubt them.
Backend choose_backend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cu_seqlens, double scale);

/// Does the environment variable PRULONG_CHECK=1 ask to check what only data on the device show, at the cost of waiting
/// for it? (0 or unset: no)
/// @throws c10::Error if it is anything else.
inline bool checks_device_data() {
  const char* set = std::getenv("PRULONG_CHECK");
  const std::string_view value = set != nullptr ? set : "";
  TORCH_CHECK(value.empty() || value == "0" || value == "1", "environment variable PRULONG_CHECK must be 0 or 1, got '",
              value, "'");
  return value == "1";
}

/// Runs an operator on a backend: hopper(), or sdpa(spec) or blocked(spec) with what read_spec() read on the host and
/// checked. All three return the same type. Hopper's kernels need nothing on the host; there read_spec() only checks,
/// and only if checks_device_data().
template <class ReadSpec, class Hopper, class Sdpa, class Blocked>
auto run_on(Backend backend, ReadSpec read_spec, Hopper hopper, Sdpa sdpa, Blocked blocked) {
  if (backend == Backend::kHopper) {
    if (checks_device_data()) read_spec();
    return hopper();
  }
  const AttentionSpec spec = read_spec();
  return backend == Backend::kSdpa ? sdpa(spec) : blocked(spec);
}

}  // namespace prulong
