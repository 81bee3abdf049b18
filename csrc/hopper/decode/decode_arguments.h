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

/// A pool of pages as a tensor whose tokens are all rows of all pages.
inline PackedTensor rows_of_pages(ElementType type, const void* pages, const Batch& batch) {
  const int64_t rows = int64_t{batch.paged.pool_pages} * kKeyBlock;
  return {type, pages, rows, 1, batch.head_dim, batch.head_dim, batch.head_dim};
}

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
  const char* fault =
      make_tensor_map(rows_of_pages(params.type, params.k_pages, params.batch), kKeyBlock, &arguments->k);
  if (fault != nullptr) return fault;
  return make_tensor_map(rows_of_pages(params.type, params.v_pages, params.batch), kKeyBlock, &arguments->v);
}

}  // namespace prulong::kernels
