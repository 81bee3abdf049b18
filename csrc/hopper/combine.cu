// SPDX-License-Identifier: MIT
#include "csrc/hopper/combine_kernel.h"

namespace prulong::kernels {
namespace {

constexpr int kBlocks = 8 * 132;  // what a Hopper GPU holds at a time; each takes its share

template <ElementType kType>
__global__ void __launch_bounds__(combine::kThreads) combine_kernel(const __grid_constant__ CombineParams params) {
  combine::run<kType>(params);
}
__global__ void __launch_bounds__(combine::kThreads) poison_kernel(const __grid_constant__ PoisonParams params) {
  combine::run(params);
}

}  // namespace

cudaError_t launch_combine(const CombineParams& params, cudaStream_t stream) {
  switch (params.type) {
    case ElementType::kBFloat16:
      combine_kernel<ElementType::kBFloat16><<<kBlocks, combine::kThreads, 0, stream>>>(params);
      return cudaGetLastError();
    case ElementType::kFloat16:
      combine_kernel<ElementType::kFloat16><<<kBlocks, combine::kThreads, 0, stream>>>(params);
      return cudaGetLastError();
    case ElementType::kFloat32:
      break;
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_poison(const PoisonParams& params, cudaStream_t stream) {
  poison_kernel<<<kBlocks, combine::kThreads, 0, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace prulong::kernels
