// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include "csrc/hopper/schedule.h"
#include "csrc/hopper/tensor_map.h"

namespace prulong::kernels {

/// Query rows that the decode kernel takes of a sequence and a KV head: its tokens times the group's query heads.
constexpr int kDecodeRows = 64;

/// Attention of a few queries of each sequence over the lists of a paged cache (csrc/ops/paged_attention.h), in one
/// launch. What the key blocks of all sequences and KV heads are, and who reads which, is found out on the device from
/// the lengths; the host knows sizes only, so a CUDA graph replays with any lengths.
///
/// Data that are wrong give NaN: in all rows if q_bounds do not rise from 0 to q_tokens or a sequence has more rows
/// than kDecodeRows, else in the rows of those sequences and KV heads that have fewer entries than queries, more than
/// their table holds, or a page outside the pool. What pages hold behind a list's end, NaN included, has no influence;
/// nor has a key that the mask hides, as long as its value is finite.
struct DecodeParams {
  Batch batch;                    // documents are sequences; with `paged`, is_global and q_bounds
  ElementType type;               // float16 or bfloat16
  const void* q;                  // [q tokens, query heads, head_dim], dense, aligned to 16 bytes; head_dim 64 or 128
  const void *k_pages, *v_pages;  // [pool pages, kKeyBlock, head_dim], dense, aligned to 16 bytes
  float scale;                    // of Q K^T; positive
  void* out;                      // like q
  float* lse;                     // [query heads, q tokens]; natural logarithm
  int processors;                 // CTAs to run: multiprocessors of the device
  // Results of CTAs that share a sequence and KV head: [2 processors, kDecodeRows, head_dim] and [2 processors,
  // kDecodeRows].
  float *partial_out, *partial_lse;
  int* arrivals;  // [processors], 0 before the first launch, which every launch leaves at 0
};
cudaError_t launch_decode(const DecodeParams& params, cudaStream_t stream);

}  // namespace prulong::kernels
