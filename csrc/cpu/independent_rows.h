// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

#include "csrc/ops/export.h"

/// A layer's functions on the CPU in float32 such that each row's results depend on that row alone, bit for bit: not on
/// how many rows there are, where it stands among them, or the number of threads. torch's do not hold to that: its
/// matrix products sum in another order for other numbers of rows, its loops end in other arithmetic than they begin
/// with. Tensors with gaps are copied first. No autograd.
namespace prulong::independent {

/// x [T, in] times weight [out, in] transposed, plus bias [out] if there is one: [T, out].
PRULONG_API at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);

/// x / sqrt(mean(x^2) + eps) * weight over the last dimension of x [T, n]; weight [n].
PRULONG_API at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

/// silu(gate) * up, of one shape.
PRULONG_API at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up);

/// Rotary embedding of x [T, H, D] by cos and sin [T, 1, D / 2].
PRULONG_API at::Tensor rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

/// Cosines and sines [T, 1, D / 2] of positions [T] * frequencies [D / 2].
PRULONG_API std::pair<at::Tensor, at::Tensor> rope_table(const at::Tensor& frequencies, const at::Tensor& positions);

}  // namespace prulong::independent
