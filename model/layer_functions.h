// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

namespace prulong {

/// x / sqrt(mean(x^2) + eps) * weight over the last dimension; statistics in float32 (float64 for float64).
/// Differentiable in x and weight; saves x and one number per row.
/// @param x       [T, n].
/// @param weight  [n], x's dtype.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

/// silu(gate) * up, same shapes and dtype. Differentiable; saves gate and up.
at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up);

/// x [T, in] times weight [out, in] transposed, plus bias [out] if there is one: [T, out]. Differentiable; a frozen
/// weight gets no gradient computed and makes nothing saved but itself. bfloat16 and float16 on a CPU that is slow in
/// them are multiplied in float32.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias = {});

/// What linear(swiglu(gate, up), down) + residual is to a backward pass: that sum's gradients for all four, and a
/// tensor of its shape [T, hidden] without values (and without memory for them). Saves gate and up.
at::Tensor feed_forward_gradients(const at::Tensor& gate, const at::Tensor& up, const at::Tensor& down,
                                  const at::Tensor& residual);

/// The dtype in which `linear` multiplies tensors like x.
at::ScalarType matmul_dtype(const at::Tensor& x);

}  // namespace prulong
