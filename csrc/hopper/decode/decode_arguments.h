// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/hopper/decode/decode.h"
#include "csrc/hopper/device/copy.h"

namespace prulong::kernels {

/// What a CTA of the decode kernel gets. Boxes of the maps: {64, kKeyBlock} of [pool pages x kKeyBlock, 1, head_dim].
struct DecodeArguments {
  device::TensorMap k, v;
  Batch batch;
  float scale;  // of raw scores, times log2(e)
  const void* q;
  void* out;
  float *lse, *partial_out, *partial_lse;
  int* arrivals;
};

/// Returns null, or what is wrong with a tensor.
inline const char* make_decode_arguments(const DecodeParams& params, DecodeArguments* arguments) {
  constexpr float kLog2E = 1.44269504088896341f;
  arguments->batch = params.batch;
  arguments->scale = params.scale * kLog2E;
  arguments->q = params.q;
  arguments->out = params.out;
  arguments->lse = params.lse;
  arguments->partial_out = params.partial_out;
  arguments->partial_lse = params.partial_lse;
  arguments->arrivals = params.arrivals;
  const auto map = [&](const void* pages, device::TensorMap* to) {
    return make_tensor_map(rows_of_pages(params.type, pages, params.batch.paged.pool_pages, params.batch.head_dim),
                           kKeyBlock, to);
  };
  if (const char* fault = map(params.k_pages, &arguments->k)) return fault;
  return map(params.v_pages, &arguments->v);
}

}  // namespace prulong::kernels
