// SPDX-License-Identifier: MIT
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "csrc/kernels/gate_mix.h"

namespace prulong::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kTokensPerPart = 64;

__device__ float to_float(float x) { return x; }
__device__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ float to_float(__half x) { return __half2float(x); }

template <typename T>
__device__ T from_float(float x);
template <>
__device__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}

// One block per token (grid-stride): neighbouring threads touch neighbouring elements of one head's rows.
template <typename T>
__global__ void gate_mix(GateMixParams p) {
  const int64_t row = p.group * p.dim;
  for (int64_t t = blockIdx.x; t < p.tokens; t += gridDim.x) {
    for (int64_t e = threadIdx.x; e < p.heads * row; e += kThreads) {
      const int64_t h = e / row;
      const int64_t i = e - h * row;
      const auto at = [&](const RowLayout& layout) { return t * layout.token_stride + h * layout.head_stride + i; };
      const float local = to_float(static_cast<const T*>(p.o_local)[at(p.local_layout)]);
      const float delta = to_float(static_cast<const T*>(p.o_global)[at(p.global_layout)]) - local;
      static_cast<T*>(p.delta)[at(p.delta_layout)] = from_float<T>(delta);
      static_cast<T*>(p.out)[at(p.out_layout)] = from_float<T>(local + p.gate[h] * delta);
    }
  }
}

// The sum of all threads' values, in thread 0. The tree is fixed.
__device__ float block_sum(float value) {
  __shared__ float sums[kThreads];
  sums[threadIdx.x] = value;
  __syncthreads();
  for (int width = kThreads / 2; width > 0; width /= 2) {
    if (static_cast<int>(threadIdx.x) < width) sums[threadIdx.x] += sums[threadIdx.x + width];
    __syncthreads();
  }
  return sums[0];
}

// Block (part, head): the products of kTokensPerPart tokens.
template <typename T>
__global__ void gate_gradient_parts_kernel(GateGradientParams p) {
  const int64_t h = blockIdx.y;
  const int64_t first = blockIdx.x * kTokensPerPart;
  const int64_t tokens = min(kTokensPerPart, p.tokens - first);
  const int64_t row = p.group * p.dim;
  float sum = 0;
  for (int64_t e = threadIdx.x; e < tokens * row; e += kThreads) {
    const int64_t t = first + e / row;
    const int64_t i = e % row;
    const int64_t dout = t * p.dout_layout.token_stride + h * p.dout_layout.head_stride + i;
    const int64_t delta = t * p.delta_layout.token_stride + h * p.delta_layout.head_stride + i;
    sum += to_float(static_cast<const T*>(p.dout)[dout]) * to_float(static_cast<const T*>(p.delta)[delta]);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) p.partial[h * gridDim.x + blockIdx.x] = sum;
}

__global__ void gate_gradient_sum(const float* partial, int64_t parts, float* dgate) {
  float sum = 0;
  for (int64_t i = threadIdx.x; i < parts; i += kThreads) sum += partial[blockIdx.x * parts + i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) dgate[blockIdx.x] = sum;
}

// Calls launch(element of the type) for the type's C++ type.
template <typename Launch>
void dispatch(ElementType type, Launch launch) {
  switch (type) {
    case ElementType::kFloat32:
      return launch(float{});
    case ElementType::kBFloat16:
      return launch(__nv_bfloat16{});
    case ElementType::kFloat16:
      return launch(__half{});
  }
}

}  // namespace

int64_t gate_gradient_parts(int64_t tokens) { return (tokens + kTokensPerPart - 1) / kTokensPerPart; }

cudaError_t launch_gate_mix(const GateMixParams& params, cudaStream_t stream) {
  if (params.tokens == 0 || params.heads == 0) return cudaSuccess;
  constexpr int64_t kMaxBlocks = 65535;
  const auto blocks = static_cast<unsigned>(params.tokens < kMaxBlocks ? params.tokens : kMaxBlocks);
  dispatch(params.type, [&](auto element) { gate_mix<decltype(element)><<<blocks, kThreads, 0, stream>>>(params); });
  return cudaGetLastError();
}

cudaError_t launch_gate_gradient(const GateGradientParams& params, cudaStream_t stream) {
  if (params.heads == 0) return cudaSuccess;
  if (params.tokens == 0) return cudaMemsetAsync(params.dgate, 0, params.heads * sizeof(float), stream);
  const int64_t parts = gate_gradient_parts(params.tokens);
  const dim3 grid(static_cast<unsigned>(parts), static_cast<unsigned>(params.heads));
  dispatch(params.type,
           [&](auto element) { gate_gradient_parts_kernel<decltype(element)><<<grid, kThreads, 0, stream>>>(params); });
  if (const cudaError_t status = cudaGetLastError(); status != cudaSuccess) return status;
  gate_gradient_sum<<<static_cast<unsigned>(params.heads), kThreads, 0, stream>>>(params.partial, parts, params.dgate);
  return cudaGetLastError();
}

}  // namespace prulong::kernels
