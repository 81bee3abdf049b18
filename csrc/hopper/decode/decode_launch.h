// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime.h>

#include "csrc/hopper/decode/decode_arguments.h"
#include "csrc/hopper/decode/decode_kernel.h"

namespace prulong::kernels::decode {

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1) kernel(const __grid_constant__ DecodeArguments arguments) {
  run<Shape>(arguments);
}

template <class Shape>
cudaError_t launch(const DecodeArguments& arguments, int processors, cudaStream_t stream) {
  const cudaError_t status =
      cudaFuncSetAttribute(kernel<Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes);
  if (status != cudaSuccess) return status;
  kernel<Shape><<<processors, Shape::kThreads, Shape::kSharedBytes, stream>>>(arguments);
  return cudaGetLastError();
}

// Instances, a source each: they compile at the same time.
using BFloat16Dim64 = DecodeShape<ElementType::kBFloat16, 64>;
using BFloat16Dim128 = DecodeShape<ElementType::kBFloat16, 128>;
using Float16Dim64 = DecodeShape<ElementType::kFloat16, 64>;
using Float16Dim128 = DecodeShape<ElementType::kFloat16, 128>;
extern template cudaError_t launch<BFloat16Dim64>(const DecodeArguments&, int, cudaStream_t);
extern template cudaError_t launch<BFloat16Dim128>(const DecodeArguments&, int, cudaStream_t);
extern template cudaError_t launch<Float16Dim64>(const DecodeArguments&, int, cudaStream_t);
extern template cudaError_t launch<Float16Dim128>(const DecodeArguments&, int, cudaStream_t);

}  // namespace prulong::kernels::decode
