// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include "csrc/hopper/schedule.h"
#include "csrc/hopper/tensor_map.h"

namespace prulong::kernels {

/// Query rows of a forward item, for ScheduleOptions. head_dim: 64 or 128.
PRULONG_HOST_DEVICE constexpr int forward_query_rows(int head_dim) { return head_dim == 64 ? 192 : 128; }

/// Softmax attention of all items of a schedule, whose plan must come before in the stream. Items of the global branch
/// write out and lse_global, of the local branch out and lse_local, of the complement delta and lse_global. A row
/// without visible keys gets 0 and a log-sum-exp of -inf.
///
/// Items with a slot for partial results leave them there instead, normalised; combine.h merges them.
///
/// What other documents hold, NaN included, has no influence. Within a document a key that the mask hides has none
/// either, as long as its value is finite.
struct ForwardParams {
  Schedule schedule;     // with forward_query_rows() query rows
  PackedTensor q, k, v;  // float16 or bfloat16, head_dim 64 or 128; must fit a tensor map. Of a paged batch k and v
                         // are rows_of_pages.
  float scale;           // of Q K^T; positive
  void* out;             // [q tokens, query heads, head_dim] of q's type, dense, aligned to 16 bytes
  void* delta;           // alike; null if no head is fractional
  float* lse_global;     // [query heads, q tokens]; natural logarithm
  float* lse_local;      // alike; null if all heads are global
  // [QueryItem::partial, query rows, head_dim] and [QueryItem::partial, query rows]; null if nothing is split.
  float* partial_out = nullptr;
  float* partial_lse = nullptr;
};
cudaError_t launch_forward(const ForwardParams& params, cudaStream_t stream);

}  // namespace prulong::kernels
