// SPDX-License-Identifier: MIT
#include "csrc/elementwise/fused_elementwise.h"

#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <cstdint>

#include "csrc/elementwise/elementwise.h"
#include "csrc/gpu_tensor.h"

namespace prulong::fused {
namespace {

at::Tensor empty_as(const at::Tensor& t) { return at::empty(t.sizes(), t.options()); }

}  // namespace

bool supports(const at::Tensor& t) {
  return t.is_cuda() && (t.scalar_type() == at::kHalf || t.scalar_type() == at::kBFloat16) && t.is_contiguous() &&
         t.numel() % 8 == 0 && reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0 &&
         compute_capability(t) >= kPortableCapability;
}

at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up) {
  const c10::OptionalDeviceGuard guard(gate.device());
  const at::Tensor out = empty_as(gate);
  C10_CUDA_CHECK(kernels::launch_swiglu({.type = element_type(gate),
                                         .size = gate.numel(),
                                         .gate = gate.const_data_ptr(),
                                         .up = up.const_data_ptr(),
                                         .out = out.mutable_data_ptr()},
                                        c10::cuda::getCurrentCUDAStream()));
  return out;
}

std::pair<at::Tensor, at::Tensor> swiglu_gradients(const at::Tensor& grad, const at::Tensor& gate,
                                                   const at::Tensor& up) {
  const c10::OptionalDeviceGuard guard(gate.device());
  const at::Tensor dgate = empty_as(gate), dup = empty_as(up);
  C10_CUDA_CHECK(kernels::launch_swiglu_gradient({.type = element_type(gate),
                                                  .size = gate.numel(),
                                                  .grad = grad.const_data_ptr(),
                                                  .gate = gate.const_data_ptr(),
                                                  .up = up.const_data_ptr(),
                                                  .dgate = dgate.mutable_data_ptr(),
                                                  .dup = dup.mutable_data_ptr()},
                                                 c10::cuda::getCurrentCUDAStream()));
  return {dgate, dup};
}

at::Tensor rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool back) {
  const c10::OptionalDeviceGuard guard(x.device());
  const at::Tensor out = empty_as(x);
  C10_CUDA_CHECK(kernels::launch_rope({.type = element_type(x),
                                       .tokens = x.size(0),
                                       .heads = x.size(1),
                                       .half = x.size(2) / 2,
                                       .back = back,
                                       .x = x.const_data_ptr(),
                                       .cos = cos.const_data_ptr(),
                                       .sin = sin.const_data_ptr(),
                                       .out = out.mutable_data_ptr()},
                                      c10::cuda::getCurrentCUDAStream()));
  return out;
}

}  // namespace prulong::fused
