// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "csrc/hopper/schedule.h"
#include "csrc/hopper/tensor_map.h"

namespace prulong::kernels {

/// Gradients of gated attention. A fractional head (0 < gate < 1) costs no more products than plain attention: with p
/// the probability of a key, its weight in `out` is exp(score - lambda), with one lambda per row for local keys and
/// another for the rest, and likewise one mean D of dP per row for each (backward_rows.h).
///
/// dk, dv and dgate have the same bits on every run; dq is summed in the order in which key blocks finish, unless that
/// is fixed. A gate outside [0, 1], NaN among them, gives NaN in its heads. An invalid schedule leaves everything
/// unwritten.
struct BackwardParams {
  Schedule schedule;           // with key items; its plan must come before in the stream
  PackedTensor q, k, v, dout;  // float16 or bfloat16, head_dim 64 or 128; must fit a tensor map
  float scale;                 // of Q K^T; positive
  const void* out;             // [q tokens, query heads, head_dim], dense, aligned to 16 bytes
  const void* delta;           // O_global - O_local, alike; read for fractional heads, null if there are none
  const float* lse_global;     // [query heads, q tokens], natural logarithm; read for heads with gate > 0
  const float* lse_local;      // alike, for heads with gate < 1
  void* scratch;               // backward_scratch_bytes(), aligned to 256
  void *dq, *dk, *dv;          // dense, of the type of q, aligned to 16 bytes
  float* dgate;                // [kv_heads]; 0 where the gate is 0 or 1
  bool deterministic = false;  // dq has the same bits on every run, too: slower
};
cudaError_t launch_backward(const BackwardParams& params, cudaStream_t stream);

size_t backward_scratch_bytes(const Batch& batch);

}  // namespace prulong::kernels
