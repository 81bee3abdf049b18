// SPDX-License-Identifier: MIT
#include "csrc/gpu_tensor.h"

#include <c10/cuda/CUDAException.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace prulong {

int compute_capability(const at::Tensor& t) {
  int major = 0, minor = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, t.get_device()));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, t.get_device()));
  return 10 * major + minor;
}

kernels::ElementType element_type(const at::Tensor& t) {
  return t.scalar_type() == at::kHalf ? kernels::ElementType::kFloat16 : kernels::ElementType::kBFloat16;
}

at::Tensor dense(const at::Tensor& t) {
  const bool aligned = reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0;
  return t.is_contiguous() && aligned ? t : t.clone(at::MemoryFormat::Contiguous);
}

}  // namespace prulong
