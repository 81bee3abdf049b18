// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime.h>

#include "csrc/hopper/forward/forward_arguments.h"
#include "csrc/hopper/forward/forward_kernel.h"

namespace prulong::kernels::forward {

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1) kernel(const __grid_constant__ ForwardArguments arguments) {
  run<Shape>(arguments);
}

/// One CTA per multiprocessor, whatever the items.
template <class Shape>
cudaError_t launch(const ForwardArguments& arguments, cudaStream_t stream) {
  int device = 0, processors = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (status == cudaSuccess) {
    status = cudaFuncSetAttribute(kernel<Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes);
  }
  if (status != cudaSuccess) return status;
  kernel<Shape><<<processors, Shape::kThreads, Shape::kSharedBytes, stream>>>(arguments);
  return cudaGetLastError();
}

// Instances, a source each: they compile at the same time.
using BFloat16Dim64 = ForwardShape<ElementType::kBFloat16, 64>;
using BFloat16Dim128 = ForwardShape<ElementType::kBFloat16, 128>;
using Float16Dim64 = ForwardShape<ElementType::kFloat16, 64>;
using Float16Dim128 = ForwardShape<ElementType::kFloat16, 128>;
using PagedBFloat16Dim64 = ForwardShape<ElementType::kBFloat16, 64, true>;
using PagedBFloat16Dim128 = ForwardShape<ElementType::kBFloat16, 128, true>;
using PagedFloat16Dim64 = ForwardShape<ElementType::kFloat16, 64, true>;
using PagedFloat16Dim128 = ForwardShape<ElementType::kFloat16, 128, true>;
extern template cudaError_t launch<BFloat16Dim64>(const ForwardArguments&, cudaStream_t);
extern template cudaError_t launch<BFloat16Dim128>(const ForwardArguments&, cudaStream_t);
extern template cudaError_t launch<Float16Dim64>(const ForwardArguments&, cudaStream_t);
extern template cudaError_t launch<Float16Dim128>(const ForwardArguments&, cudaStream_t);
extern template cudaError_t launch<PagedBFloat16Dim64>(const ForwardArguments&, cudaStream_t);
extern template cudaError_t launch<PagedBFloat16Dim128>(const ForwardArguments&, cudaStream_t);
extern template cudaError_t launch<PagedFloat16Dim64>(const ForwardArguments&, cudaStream_t);
extern template cudaError_t launch<PagedFloat16Dim128>(const ForwardArguments&, cudaStream_t);

}  // namespace prulong::kernels::forward
