// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "csrc/elementwise/element_type.h"

namespace prulong::kernels {

constexpr int kVectorWidth = 8;  // elements of a vector: 16 bytes

__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }

template <typename T>
__device__ T from_float(float x);
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half_rn(x);
}

/// What one thread reads or writes at once.
template <typename T>
struct alignas(16) Vector {
  T element[kVectorWidth];
};

template <typename T>
__device__ Vector<T> load(const void* base, int64_t vector) {
  return static_cast<const Vector<T>*>(base)[vector];
}

template <typename T>
__device__ void store(void* base, int64_t vector, const Vector<T>& value) {
  static_cast<Vector<T>*>(base)[vector] = value;
}

/// Calls launch(element of the type) for the type's C++ type and returns the launch's status.
template <typename Launch>
cudaError_t launch_for_type(ElementType type, Launch launch) {
  switch (type) {
    case ElementType::kBFloat16:
      launch(__nv_bfloat16{});
      return cudaGetLastError();
    case ElementType::kFloat16:
      launch(__half{});
      return cudaGetLastError();
    case ElementType::kFloat32:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace prulong::kernels
