// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include "csrc/attention_spec.h"

namespace prulong {

/// Who computes attention: our kernels for Hopper GPUs (csrc/hopper), PyTorch's own CUDA kernels (csrc/sdpa), or tiles
/// of ATen operators, on any device (csrc/cpu).
enum class Backend { kHopper, kSdpa, kBlocked };

/// The first of these backends that can compute such tensors, already checked for shape, dtype and device. The
/// environment variable PRULONG_ATTENTION=sdpa leaves our kernels for Hopper GPUs out, to measure or to doubt them.
Backend choose_backend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cu_seqlens, double scale);

/// Runs an operator on a backend: hopper(), or sdpa(spec) or blocked(spec) with what read_spec() read on the host and
/// checked. All three return the same type.
template <class ReadSpec, class Hopper, class Sdpa, class Blocked>
auto run_on(Backend backend, ReadSpec read_spec, Hopper hopper, Sdpa sdpa, Blocked blocked) {
  if (backend == Backend::kHopper) return hopper();
  const AttentionSpec spec = read_spec();
  return backend == Backend::kSdpa ? sdpa(spec) : blocked(spec);
}

}  // namespace prulong
