// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <cstdint>
#include <tuple>

#include "csrc/ops/export.h"

namespace prulong {

/// Arguments of masked_attention, in the order of its schema.
struct MaskedArguments {
  at::Tensor q;          ///< [Tq, Hq, D] float64 (CPU only), float32, bfloat16 or float16; last dimension contiguous.
  at::Tensor k, v;       ///< [Tk, Hkv, D], same dtype and device; Hq is a multiple of Hkv.
  at::Tensor is_global;  ///< [Hkv] bool, same device.
  at::Tensor cu_seqlens_q;                 ///< [docs + 1] int32, from 0 to Tq.
  at::Tensor cu_seqlens_k;                 ///< [docs + 1] int32, from 0 to Tk; every document has q_len <= k_len.
  c10::SymInt max_seqlen_q, max_seqlen_k;  ///< Longest document (a bound is enough).
  int64_t sink, window;                    ///< sink >= 0, window >= 1, as for gated_attention.
  double scale;
};

/// Inference attention with 0/1 heads: a global KV head sees every earlier key of the document, a local one the keys j
/// of query i with j - document_start < sink or i - j < window. A document may have fewer queries than keys (chunked
/// prefill, decode): its queries are then the last ones, query r stands at position k_len - q_len + r. Not
/// differentiable.
/// @returns             out [Tq, Hq, D] in q's dtype; log-sum-exp of the scaled scores [Hq, Tq] in float32 (float64 for
///                      float64 inputs), natural logarithm.
/// @throws c10::Error naming the argument, what was expected and what was found. Our kernels for Hopper GPUs do not
/// wait for the device: what only data on it show (bounds) gives NaN there, and max_seqlen is not read, unless the
/// environment variable PRULONG_CHECK=1 makes them errors there too (as for gated_attention).
PRULONG_API std::tuple<at::Tensor, at::Tensor> masked_attention(const MaskedArguments& arguments);

}  // namespace prulong
