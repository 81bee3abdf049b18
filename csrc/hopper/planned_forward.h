// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>
#include <cuda_runtime_api.h>

#include "csrc/hopper/forward/forward.h"

/// What the calls of the forward kernel have in common, on the host's side.
namespace prulong::hopper {

/// A schedule whose plan is on its way, and the memory that holds it. Memory freed by the host lives on until the
/// stream is past its use.
struct Planned {
  at::Tensor memory;
  kernels::Schedule schedule;
};
Planned plan(const kernels::Batch& batch, const kernels::ScheduleOptions& options, const at::Tensor& q,
             cudaStream_t stream);

/// How kernels see a tensor [tokens, heads, head_dim].
kernels::PackedTensor packed(const at::Tensor& t);

/// For log-sum-exps: [heads, tokens] of q in float32.
at::Tensor empty_statistics(const at::Tensor& q);

/// Multiprocessors of the device that holds a tensor.
int processor_count(const at::Tensor& t);

/// The forward kernel, and what finishes its results.
void run_forward(const kernels::ForwardParams& params, cudaStream_t stream);

/// Attention of a batch without fractional heads, long tiles split over multiprocessors. q must fit a tensor map.
/// Writes out, like q and dense, and lse, as empty_statistics().
void run_masked(const kernels::Batch& batch, const at::Tensor& q, const kernels::PackedTensor& k,
                const kernels::PackedTensor& v, double scale, const at::Tensor& out, const at::Tensor& lse,
                cudaStream_t stream);

}  // namespace prulong::hopper
