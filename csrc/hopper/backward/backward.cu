// SPDX-License-Identifier: MIT
#include "csrc/hopper/backward/backward_launch.h"

namespace prulong::kernels {

size_t backward_scratch_bytes(const Batch& batch) {
  return static_cast<size_t>(backward_scratch(batch).size) * sizeof(float);
}

cudaError_t launch_backward(const BackwardParams& params, cudaStream_t stream) {
  const Batch& batch = params.schedule.batch;
  if (batch.head_dim != 64 && batch.head_dim != 128) return cudaErrorInvalidValue;
  if (batch.q_tokens == 0 || batch.k_tokens == 0) {
    return cudaMemsetAsync(params.dgate, 0, static_cast<size_t>(batch.kv_heads) * sizeof(float), stream);
  }
  BackwardArguments arguments;
  if (make_backward_arguments(params, &arguments) != nullptr) return cudaErrorInvalidValue;
  const BackwardRows rows = make_backward_rows(params);
  if (params.q.type == ElementType::kBFloat16) {
    return batch.head_dim == 64 ? backward::launch<backward::BFloat16Dim64>(rows, arguments, stream)
                                : backward::launch<backward::BFloat16Dim128>(rows, arguments, stream);
  }
  return batch.head_dim == 64 ? backward::launch<backward::Float16Dim64>(rows, arguments, stream)
                              : backward::launch<backward::Float16Dim128>(rows, arguments, stream);
}

}  // namespace prulong::kernels
