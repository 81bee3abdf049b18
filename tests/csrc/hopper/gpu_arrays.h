// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_bf16.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "csrc/elementwise/element_type.h"
#include "csrc/hopper/tensor_map.h"

/// What bench_forward and bench_backward share: arrays in GPU memory, random numbers.
namespace prulong::kernels {

using Element = __nv_bfloat16;

/// Ends the program where a CUDA call fails.
#define OK(call)                                                                            \
  do {                                                                                      \
    const cudaError_t error = (call);                                                       \
    if (error != cudaSuccess) {                                                             \
      std::printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error)); \
      std::exit(1);                                                                         \
    }                                                                                       \
  } while (0)

/// An array in GPU memory, NaN at first.
template <class T>
struct Array {
  T* data = nullptr;
  size_t size = 0;
  explicit Array(size_t n) : size(n) {
    OK(cudaMalloc(&data, std::max<size_t>(n, 1) * sizeof(T)));
    poison();
  }
  explicit Array(const std::vector<T>& from) : Array(from.size()) {
    OK(cudaMemcpy(data, from.data(), size * sizeof(T), cudaMemcpyHostToDevice));
  }
  Array(const Array&) = delete;
  ~Array() { cudaFree(data); }
  std::vector<T> host() const {
    std::vector<T> to(size);
    OK(cudaMemcpy(to.data(), data, size * sizeof(T), cudaMemcpyDeviceToHost));
    return to;
  }
  void poison() { OK(cudaMemset(data, 0xff, size * sizeof(T))); }
};

/// Random normal numbers, times `scale`.
static __global__ void fill(Element* to, int64_t n, uint32_t seed, float scale) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x) {
    uint64_t x = (static_cast<uint64_t>(i) + 1) * 0x9e3779b97f4a7c15ull + seed * 0xd1b54a32d192ed03ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    x ^= x >> 31;
    const float u = (static_cast<uint32_t>(x) + 0.5f) * 0x1p-32f, v = static_cast<float>(x >> 32) * 0x1p-32f;
    to[i] = __float2bfloat16(scale * sqrtf(-2 * logf(u)) * cospif(2 * v));
  }
}

/// A dense tensor [tokens, heads, dim].
inline PackedTensor dense(const Array<Element>& x, int64_t tokens, int64_t heads, int64_t dim) {
  return {ElementType::kBFloat16, x.data, tokens, heads, dim, heads * dim, dim};
}

}  // namespace prulong::kernels
