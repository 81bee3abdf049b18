// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/hopper/device/copy.h"
#include "csrc/hopper/forward/forward.h"

namespace prulong::kernels {

/// What a CTA of the forward kernel gets. Boxes of the maps: q {64, query rows}, k and v {64, kKeyBlock}, out and delta
/// {64, 64}.
struct ForwardArguments {
  device::TensorMap q, k, v, out, delta;
  Schedule schedule;
  float scale;                    // of raw scores, times log2(e); positive
  void *out_data, *delta_data;    // [tokens, query heads, head_dim] of 16 bits, dense
  float *lse_global, *lse_local;  // [query heads, tokens]
  // [slots, query rows, head_dim] and [slots, query rows]
  float *partial_out, *partial_lse;
};

/// Returns null, or what is wrong with a tensor.
inline const char* make_forward_arguments(const ForwardParams& params, ForwardArguments* arguments) {
  constexpr float kLog2E = 1.44269504088896341f;
  arguments->schedule = params.schedule;
  arguments->scale = params.scale * kLog2E;
  arguments->out_data = params.out;
  arguments->delta_data = params.delta;
  arguments->lse_global = params.lse_global;
  arguments->lse_local = params.lse_local;
  arguments->partial_out = params.partial_out;
  arguments->partial_lse = params.partial_lse;
  PackedTensor out = params.q;
  out.token_stride = out.heads * out.head_dim;
  out.head_stride = out.head_dim;
  const struct {
    PackedTensor tensor;
    const void* data;
    int rows;
    device::TensorMap* map;
  } maps[] = {{params.q, params.q.data, params.schedule.query_rows, &arguments->q},
              {params.k, params.k.data, kKeyBlock, &arguments->k},
              {params.v, params.v.data, kKeyBlock, &arguments->v},
              {out, params.out, 64, &arguments->out},
              {out, params.delta != nullptr ? params.delta : params.out, 64, &arguments->delta}};
  for (const auto& m : maps) {
    PackedTensor tensor = m.tensor;
    tensor.data = m.data;
    if (const char* fault = make_tensor_map(tensor, m.rows, m.map)) return fault;
  }
  return nullptr;
}

}  // namespace prulong::kernels
