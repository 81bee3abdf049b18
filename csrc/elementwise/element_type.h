// SPDX-License-Identifier: MIT
#pragma once

namespace prulong::kernels {

/// What tensors hold; sums are always float.
enum class ElementType { kFloat32, kBFloat16, kFloat16 };

}  // namespace prulong::kernels
