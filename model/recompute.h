// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace prulong {

/// A tensor out of tensors, without side effects: the same inputs give the same output bit for bit.
using TensorFunction = std::function<at::Tensor(const std::vector<at::Tensor>&)>;

/// function(inputs), keeping only the inputs for the backward pass, which runs the function again. Gradients are those
/// of the plain call, exactly.
/// @param inputs  every tensor that a gradient shall reach, all defined; what `function` captures gets none.
at::Tensor recomputed(TensorFunction function, const std::vector<at::Tensor>& inputs);

}  // namespace prulong
