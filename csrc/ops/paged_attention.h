// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <cstdint>
#include <tuple>

#include "csrc/ops/export.h"

namespace prulong {

/// Arguments of paged_attention, in the order of its schema.
struct PagedArguments {
  at::Tensor q;  ///< [T, Hq, D] float64 (CPU only), float32, bfloat16 or float16; last dimension contiguous.
  at::Tensor k_pages, v_pages;  ///< [P, page, D], q's dtype and device, dense.
  at::Tensor page_table;        ///< [B, Hkv, N] int32, same device, as for append_kv; Hq is a multiple of Hkv.
  at::Tensor lengths;           ///< [B, Hkv] int32, same device: entries of each head; they may differ.
  at::Tensor is_global;         ///< [Hkv] bool, same device.
  at::Tensor cu_seqlens_q;      ///< [B + 1] int32, from 0 to T, same device.
  c10::SymInt max_seqlen_q;     ///< Most queries of a sequence (a bound is enough).
  int64_t sink, window;         ///< sink >= 0, window >= 1, as for masked_attention.
  double scale;
};

/// Attention of new queries over a cache whose heads keep lists of entries of different lengths, prefill chunks and
/// decode alike. The queries of a sequence are the last entries of each of its heads' lists: query r of n stands at
/// place length - n + r of the list. A global head sees every entry up to that place; a local one the entries j of the
/// query at place i with j < sink or i - j < window. Places stand for positions as long as only whole pages are missing
/// behind those that hold the sink, and no query could see one of them (engine/kv_cache.h); so a mask needs no
/// positions. Not differentiable.
/// On a CPU a row's result depends on nothing but its own query and its head's entries page by page: not by a bit on
/// how many rows, sequences or threads there are, nor on pages that it cannot see.
/// @returns             out [T, Hq, D] in q's dtype; log-sum-exp of the scaled scores [Hq, T] in float32 (float64 for
///                      float64 inputs), natural logarithm.
/// @throws c10::Error naming the argument, what was expected and what was found: fewer entries than queries, pages
/// outside the pool. Our kernels for Hopper GPUs do not wait for the device: there such data give NaN, and max_seqlen_q
/// only bounds, unless PRULONG_CHECK=1 makes them errors there too (masked_attention.h).
PRULONG_API std::tuple<at::Tensor, at::Tensor> paged_attention(const PagedArguments& arguments);

/// Whether paged_attention of such tensors reads nothing back from their device, so that a CUDA graph can capture it.
PRULONG_API bool attends_without_waiting(const PagedArguments& arguments);

}  // namespace prulong
