// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "csrc/elementwise/element_type.h"

namespace prulong::kernels {

// Elementwise steps of a layer, each in one pass over its tensors. float16 and bfloat16; arithmetic in float32, rounded
// once. All arrays are dense and 16-byte aligned.

/// out = silu(gate) * up.
struct SwiGluParams {
  ElementType type;
  int64_t size;  // elements, a multiple of 8
  const void* gate;
  const void* up;
  void* out;
};
cudaError_t launch_swiglu(const SwiGluParams& params, cudaStream_t stream);

/// Its gradients for gate and up. Either may lie where grad does.
struct SwiGluGradientParams {
  ElementType type;
  int64_t size;
  const void* grad;
  const void* gate;
  const void* up;
  void* dgate;
  void* dup;
};
cudaError_t launch_swiglu_gradient(const SwiGluGradientParams& params, cudaStream_t stream);

/// Rotary embedding: [x1 cos - x2 sin, x2 cos + x1 sin] of x's two halves, or the turn back (sin negated).
struct RopeParams {
  ElementType type;
  int64_t tokens, heads, half;  // half a head's elements, a multiple of 8
  bool back;
  const void* x;    // [tokens, heads, 2 * half]
  const void* cos;  // [tokens, half]
  const void* sin;  // [tokens, half]
  void* out;        // as x
};
cudaError_t launch_rope(const RopeParams& params, cudaStream_t stream);

}  // namespace prulong::kernels
