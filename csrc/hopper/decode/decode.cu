// SPDX-License-Identifier: MIT
#include "csrc/hopper/decode/decode_launch.h"

namespace prulong::kernels {

cudaError_t launch_decode(const DecodeParams& params, cudaStream_t stream) {
  const int dim = params.batch.head_dim;
  if ((dim != 64 && dim != 128) || params.type == ElementType::kFloat32) return cudaErrorInvalidValue;
  if (params.batch.q_tokens == 0) return cudaSuccess;
  DecodeArguments arguments;
  if (make_decode_arguments(params, &arguments) != nullptr) return cudaErrorInvalidValue;
  if (params.type == ElementType::kBFloat16) {
    return dim == 64 ? decode::launch<decode::BFloat16Dim64>(arguments, params.processors, stream)
                     : decode::launch<decode::BFloat16Dim128>(arguments, params.processors, stream);
  }
  return dim == 64 ? decode::launch<decode::Float16Dim64>(arguments, params.processors, stream)
                   : decode::launch<decode::Float16Dim128>(arguments, params.processors, stream);
}

}  // namespace prulong::kernels
