// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

#include "csrc/ops/export.h"

/// Elementwise steps of a layer as one kernel each (kernels/elementwise.h), where ATen needs several passes. Arithmetic
/// in float32, rounded once. No autograd.
namespace prulong::fused {

/// Can the kernels read it? (CUDA, compute capability 8.0 and more, float16 or bfloat16, dense, aligned to 16 bytes, a
/// multiple of 8 elements)
PRULONG_API bool supports(const at::Tensor& t);

/// silu(gate) * up, of tensors of one shape and dtype.
PRULONG_API at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up);

/// Its gradients for gate and up.
PRULONG_API std::pair<at::Tensor, at::Tensor> swiglu_gradients(const at::Tensor& grad, const at::Tensor& gate,
                                                               const at::Tensor& up);

/// Rotary embedding of x [T, H, D], D a multiple of 16, by cos and sin [T, 1, D / 2] in x's dtype; `back` turns back.
PRULONG_API at::Tensor rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool back);

}  // namespace prulong::fused
