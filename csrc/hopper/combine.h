// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>

#include "csrc/elementwise/element_type.h"
#include "csrc/hopper/schedule.h"

namespace prulong::kernels {

/// What joins the results of softmaxes over disjoint keys.
struct JoinWeights {
  float lse;     // over all keys
  float second;  // weight of the second result; the first has 1 - second
};

/// lse_first and lse_second: -inf where there are no keys; the joint weights of two empty sets are 1 and 0.
PRULONG_HOST_DEVICE JoinWeights join_weights(float lse_first, float lse_second) {
  if (lse_first == -INFINITY && lse_second == -INFINITY) return {-INFINITY, 0};
  const float top = fmaxf(lse_first, lse_second);
  const float first = expf(lse_first - top), second = expf(lse_second - top);
  return {top + logf(first + second), second / (first + second)};
}

/// One element of a fractional head.
struct GatedElement {
  float out, delta;
};

/// From the local and the complement branch, the latter with weight `complement_weight` in the global one: delta =
/// global - local and out = local + gate * delta. A row whose complement is empty has delta 0, whatever o_complement
/// holds. A gate outside [0, 1] gives NaN.
PRULONG_HOST_DEVICE GatedElement combine_element(float o_local, float o_complement, float complement_weight,
                                                 float gate) {
  const float delta = complement_weight == 0 ? 0 : complement_weight * (o_complement - o_local);
  const float z = gate >= 0 && gate <= 1 ? gate : NAN;
  return {o_local + z * delta, delta};
}

/// Finishes what the forward kernel wrote, in one pass. Heads with a fractional gate: out and lse_local hold the local
/// branch, delta and lse_global the complement; afterwards they hold what gated attention returns. Split tiles: their
/// partial results are merged into out and lse. Other rows are left alone. If the schedule is invalid, all four
/// arrays become NaN.
struct CombineParams {
  ElementType type;   // float16 or bfloat16
  Schedule schedule;  // as for the forward kernel
  void* out;          // [q tokens, query heads, head_dim], dense, aligned to 16 bytes
  void* delta;        // alike; null if no head is fractional
  float* lse_global;  // [query heads, q tokens]
  float* lse_local;   // alike; null if no head is fractional
  // Results of split tiles: [QueryItem::partial, query rows, head_dim] and [QueryItem::partial, query rows]; null if
  // the schedule splits nothing.
  const float *partial_out, *partial_lse;
};
cudaError_t launch_combine(const CombineParams& params, cudaStream_t stream);

/// Fills arrays of 16-bit or 32-bit floating point with NaN if the schedule is invalid; else does nothing.
struct PoisonParams {
  const ScheduleState* state;
  void* data[4];     // aligned to 4 bytes, or null
  int64_t bytes[4];  // multiples of 4
};
cudaError_t launch_poison(const PoisonParams& params, cudaStream_t stream);

}  // namespace prulong::kernels
