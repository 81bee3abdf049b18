// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include "model/rope.h"

namespace prulong {

/// What a forward pass does to its rows beside attention, as layer_functions.h and rope.h declare it.
struct RowFunctions {
  at::Tensor (*linear)(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);
  at::Tensor (*rms_norm)(const at::Tensor& x, const at::Tensor& weight, double eps);
  at::Tensor (*swiglu)(const at::Tensor& gate, const at::Tensor& up);
  at::Tensor (*rotate)(const at::Tensor& x, const RopeTable& table);
  RopeTable (*rope_table)(const at::Tensor& frequencies, const at::Tensor& positions, at::ScalarType dtype);
};

/// The functions for tensors like x. `independent`: those in which each row's results depend on that row alone, bit for
/// bit, without gradients; there are such for float32 on the CPU. Otherwise, and while gradients are recorded, the
/// differentiable ones.
const RowFunctions& row_functions(const at::Tensor& x, bool independent);

}  // namespace prulong
