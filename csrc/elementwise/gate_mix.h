// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "csrc/elementwise/element_type.h"

namespace prulong::kernels {

// What surrounds PyTorch's attention in gated attention, each in one pass over the tensors. float16 and bfloat16;
// arithmetic in float32. All arrays are dense and 16-byte aligned, and `row`, the elements of one token and KV head, is
// a multiple of 8. Branch tensors hold only the heads that compute the branch, in ascending order: the global branch
// those with gate > 0, the local branch those with gate < 1.

/// out = o_local + gate * (o_global - o_local), and delta = o_global - o_local where the gate is fractional, else 0.
struct GateMixParams {
  ElementType type;
  int64_t tokens, heads, row;
  const float* gate;     // [heads], in [0, 1]
  const void* o_global;  // [tokens, heads with gate > 0, row]
  const void* o_local;   // [tokens, heads with gate < 1, row]
  void* out;             // [tokens, heads, row]
  void* delta;           // [tokens, heads, row] or null
};
cudaError_t launch_gate_mix(const GateMixParams& params, cudaStream_t stream);

/// The inverse: o_global and o_local of out and delta, as well as those tensors can give them.
struct GateSplitParams {
  ElementType type;
  int64_t tokens, heads, row;
  const float* gate;  // [heads]
  const void* out;    // [tokens, heads, row]
  const void* delta;  // [tokens, heads, row], read where the gate is fractional
  void* o_global;     // [tokens, heads with gate > 0, row]
  void* o_local;      // [tokens, heads with gate < 1, row]
};
cudaError_t launch_gate_split(const GateSplitParams& params, cudaStream_t stream);

/// dgate[h] = sum of dout * delta over the head's tokens and row, in a fixed order (two stages, no atomics): the same
/// bits on every run. 0 where the gate is 0 or 1.
struct GateGradientParams {
  ElementType type;
  int64_t tokens, heads, row;
  const float* gate;  // [heads]
  const void* dout;   // [tokens, heads, row]
  const void* delta;  // [tokens, heads, row]
  float* partial;     // [heads, gate_gradient_parts(tokens)] scratch
  float* dgate;       // [heads]
};
cudaError_t launch_gate_gradient(const GateGradientParams& params, cudaStream_t stream);

/// Number of first-stage sums per head.
int64_t gate_gradient_parts(int64_t tokens);

/// Joins the softmax over more keys, for some rows, to a softmax over other keys: out and lse become those over both.
struct SoftmaxMergeParams {
  ElementType type;
  int64_t rows, heads, dim;  // query heads; dim a multiple of 8
  const int64_t* row_index;  // [rows]: a row's place in out and lse; null: first_row + r
  int64_t first_row;
  int64_t lse_stride;     // of out's log-sum-exp, from head to head
  const void* part_out;   // [rows, heads, dim]
  const float* part_lse;  // [heads, rows]
  void* out;              // [tokens, heads, dim]
  float* lse;             // [heads, tokens]
};
cudaError_t launch_softmax_merge(const SoftmaxMergeParams& params, cudaStream_t stream);

}  // namespace prulong::kernels
