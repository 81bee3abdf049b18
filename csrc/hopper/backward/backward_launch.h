// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime.h>

#include "csrc/hopper/backward/backward_kernel.h"

namespace prulong::kernels::backward {

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1) kernel(const __grid_constant__ BackwardArguments arguments) {
  run<Shape>(arguments);
}
template <class Shape>
__global__ void __launch_bounds__(kBackwardRowThreads) prepare(const __grid_constant__ BackwardRows rows) {
  prepare_rows<Shape::kType, Shape::kHeadDim>(rows);
}
template <class Shape>
__global__ void __launch_bounds__(kBackwardRowThreads) finish(const __grid_constant__ BackwardRows rows) {
  finish_rows<Shape::kType, Shape::kHeadDim>(rows);
}

/// The main kernel has one CTA per multiprocessor, whatever the items.
template <class Shape>
cudaError_t launch(const BackwardRows& rows, const BackwardArguments& arguments, cudaStream_t stream) {
  int device = 0, processors = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (status == cudaSuccess) {
    status = cudaFuncSetAttribute(kernel<Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes);
  }
  if (status != cudaSuccess) return status;
  prepare<Shape>
      <<<static_cast<unsigned>(prepare_blocks(rows.batch)), kBackwardRowThreads, kPrepareSharedBytes, stream>>>(rows);
  kernel<Shape><<<processors, Shape::kThreads, Shape::kSharedBytes, stream>>>(arguments);
  finish<Shape><<<static_cast<unsigned>(finish_blocks(rows.batch)), kBackwardRowThreads,
                  kFinishSharedBytes<Shape::kHeadDim>, stream>>>(rows);
  return cudaGetLastError();
}

// Instances, a source each: they compile at the same time.
using BFloat16Dim64 = BackwardShape<ElementType::kBFloat16, 64>;
using BFloat16Dim128 = BackwardShape<ElementType::kBFloat16, 128>;
using Float16Dim64 = BackwardShape<ElementType::kFloat16, 64>;
using Float16Dim128 = BackwardShape<ElementType::kFloat16, 128>;
extern template cudaError_t launch<BFloat16Dim64>(const BackwardRows&, const BackwardArguments&, cudaStream_t);
extern template cudaError_t launch<BFloat16Dim128>(const BackwardRows&, const BackwardArguments&, cudaStream_t);
extern template cudaError_t launch<Float16Dim64>(const BackwardRows&, const BackwardArguments&, cudaStream_t);
extern template cudaError_t launch<Float16Dim128>(const BackwardRows&, const BackwardArguments&, cudaStream_t);

}  // namespace prulong::kernels::backward
