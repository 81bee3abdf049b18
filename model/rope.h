// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include "model/model_config.h"

namespace prulong {

/// Cosines and sines of every position's angles, [T, 1, head_dim / 2], the model's dtype and device.
struct RopeTable {
  at::Tensor cos;
  at::Tensor sin;
};

/// Radians per position of each pair of dimensions, [head_dim / 2] float32 on the CPU, by the same float32 operations
/// as transformers (a different rounding shows at long positions).
at::Tensor rope_frequencies(const RopeConfig& rope, int64_t head_dim);

/// @param frequencies  of rope_frequencies, any device.
/// @param positions    [T] float32, same device.
RopeTable rope_table(const at::Tensor& frequencies, const at::Tensor& positions, at::ScalarType dtype);

/// Rotates x [T, heads, head_dim] by its positions; dimension i pairs with i + head_dim / 2. Differentiable in x; saves
/// only the table.
at::Tensor rotate(const at::Tensor& x, const RopeTable& table);

}  // namespace prulong
