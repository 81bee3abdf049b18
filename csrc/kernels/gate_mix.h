// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace prulong::kernels {

enum class ElementType { kFloat32, kBFloat16, kFloat16 };

/// Packed attention tensors: element (t, h, i, d) of KV head h's i-th query head lies at t * token_stride + h *
/// head_stride
/// + i * dim + d (elements, not bytes).
struct RowLayout {
  int64_t token_stride;
  int64_t head_stride;
};

/// out = o_local + gate[h] * (o_global - o_local) and delta = o_global - o_local, in one pass, arithmetic in float32.
struct GateMixParams {
  ElementType type;
  int64_t tokens, heads, group, dim;
  const void* o_global;  // [tokens, heads, group, dim] of `type`
  const void* o_local;
  const float* gate;  // [heads]
  void* out;          // may be o_global or o_local
  void* delta;
  RowLayout global_layout, local_layout, out_layout, delta_layout;
};
cudaError_t launch_gate_mix(const GateMixParams& params, cudaStream_t stream);

/// dgate[h] = sum of dout * delta over the head's tokens, group and dim, in float32 and in a fixed order (two stages,
/// no atomics): the same bits on every run.
struct GateGradientParams {
  ElementType type;
  int64_t tokens, heads, group, dim;
  const void* dout;  // [tokens, heads, group, dim] of `type`
  const void* delta;
  float* partial;  // [heads, gate_gradient_parts(tokens)] scratch
  float* dgate;    // [heads]
  RowLayout dout_layout, delta_layout;
};
cudaError_t launch_gate_gradient(const GateGradientParams& params, cudaStream_t stream);

/// Number of first-stage sums per head.
int64_t gate_gradient_parts(int64_t tokens);

}  // namespace prulong::kernels
