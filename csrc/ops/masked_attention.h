// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <tuple>

#include "csrc/ops/export.h"

namespace prulong {

/// Inference attention with 0/1 heads: a global KV head sees every earlier key of the document, a local one the keys j
/// of query i with j - document_start < sink or i - j < window. A document may have fewer queries than keys (chunked
/// prefill, decode): its queries are then the last ones, query r stands at position k_len - q_len + r. Not
/// differentiable.
/// @param q             [Tq, Hq, D] float64 (CPU only), float32, bfloat16 or float16; last dimension contiguous.
/// @param k, v          [Tk, Hkv, D], same dtype and device; Hq is a multiple of Hkv.
/// @param is_global     [Hkv] bool, same device.
/// @param cu_seqlens_q  [docs + 1] int32, from 0 to Tq.
/// @param cu_seqlens_k  [docs + 1] int32, from 0 to Tk; every document has q_len <= k_len.
/// @param max_seqlen_q, max_seqlen_k  longest document (a bound is enough).
/// @param sink >= 0, window >= 1, scale as for gated_attention.
/// @returns             out [Tq, Hq, D] in q's dtype; log-sum-exp of the scaled scores [Hq, Tq] in float32 (float64 for
///                      float64 inputs), natural logarithm.
/// @throws c10::Error naming the argument, what was expected and what was found. Our kernels for Hopper GPUs do not
/// wait for the device: what only data on it show (bounds) gives NaN there, and max_seqlen is not read.
PRULONG_API std::tuple<at::Tensor, at::Tensor> masked_attention(const at::Tensor& q, const at::Tensor& k,
                                                                const at::Tensor& v, const at::Tensor& is_global,
                                                                const at::Tensor& cu_seqlens_q,
                                                                const at::Tensor& cu_seqlens_k, int64_t max_seqlen_q,
                                                                int64_t max_seqlen_k, int64_t sink, int64_t window,
                                                                double scale);

}  // namespace prulong
