// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include "csrc/elementwise/element_type.h"

namespace prulong {

/// Compute capability of the GPU that holds a CUDA tensor: 90 for 9.0. What decides which kernels may run there.
int compute_capability(const at::Tensor& t);

/// The lowest one for which our portable kernels (csrc/elementwise) are compiled; they run on all above.
constexpr int kPortableCapability = 80;

/// How kernels name the dtype of a float16 or bfloat16 tensor.
kernels::ElementType element_type(const at::Tensor& t);

/// The tensor as kernels read vectors of it: without gaps, from a 16-byte boundary on. A copy where it is not so.
at::Tensor dense(const at::Tensor& t);

}  // namespace prulong
