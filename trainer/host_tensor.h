// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace prulong {

/// A tensor of any device and dtype as doubles on the host.
std::vector<double> to_vector(const at::Tensor& tensor);

/// [values.size()] float64 on the CPU.
at::Tensor to_tensor(const std::vector<double>& values);

}  // namespace prulong
