// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace prulong {

/// The run that a function is in.
struct RecomputeState {
  bool again = false;            ///< for the gradients alone: of what the function returns only the shape matters
  std::vector<at::Tensor> kept;  ///< what the first run leaves here, the second finds; no gradient passes through it
  at::Tensor gates;              ///< set by the layer: its gates as an input of the function, for Attention::attend
};

/// A tensor out of tensors, without side effects: the same inputs give the same output bit for bit.
using TensorFunction = std::function<at::Tensor(const std::vector<at::Tensor>& inputs, RecomputeState& state)>;

/// function(inputs), keeping only the inputs, and what the function chooses to keep, for the backward pass, which runs
/// the function again. Gradients are those of the plain call, exactly.
/// @param inputs  every tensor that a gradient shall reach, all defined; what `function` captures gets none.
at::Tensor recomputed(TensorFunction function, const std::vector<at::Tensor>& inputs);

}  // namespace prulong
