// SPDX-License-Identifier: MIT
#include "csrc/hopper/forward/forward_launch.h"

namespace prulong::kernels {

cudaError_t launch_forward(const ForwardParams& params, cudaStream_t stream) {
  const Schedule& schedule = params.schedule;
  const int64_t dim = params.q.head_dim;
  if ((dim != 64 && dim != 128) || schedule.query_rows != forward_query_rows(static_cast<int>(dim))) {
    return cudaErrorInvalidValue;
  }
  if (schedule.batch.q_tokens == 0 || schedule.batch.k_tokens == 0) return cudaSuccess;  // no items
  ForwardArguments arguments;
  if (make_forward_arguments(params, &arguments) != nullptr) return cudaErrorInvalidValue;
  const bool narrow = dim == 64;
  if (params.q.type == ElementType::kBFloat16) {
    if (schedule.batch.is_paged()) {
      return narrow ? forward::launch<forward::PagedBFloat16Dim64>(arguments, stream)
                    : forward::launch<forward::PagedBFloat16Dim128>(arguments, stream);
    }
    return narrow ? forward::launch<forward::BFloat16Dim64>(arguments, stream)
                  : forward::launch<forward::BFloat16Dim128>(arguments, stream);
  }
  if (schedule.batch.is_paged()) {
    return narrow ? forward::launch<forward::PagedFloat16Dim64>(arguments, stream)
                  : forward::launch<forward::PagedFloat16Dim128>(arguments, stream);
  }
  return narrow ? forward::launch<forward::Float16Dim64>(arguments, stream)
                : forward::launch<forward::Float16Dim128>(arguments, stream);
}

}  // namespace prulong::kernels
