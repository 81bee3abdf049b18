// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include "csrc/ops/export.h"

namespace prulong {

/// Arguments of append_kv, in the order of its schema.
struct AppendArguments {
  at::Tensor k, v;              ///< [T, Hkv, D], pages' dtype and device, last dimension contiguous: new entries, of
                                ///< several sequences behind one another.
  at::Tensor k_pages, v_pages;  ///< [P, page, D] float64 (CPU only), float32, bfloat16 or float16, dense: written.
  at::Tensor page_table;        ///< [B, Hkv, N] int32, same device: entry e of a head lies in row e % page of page
                                ///< page_table[b, h, e / page]. Places past a head's last page are not read.
  at::Tensor lengths;           ///< [B, Hkv] int32, same device: entries of each head, the new ones included.
  at::Tensor cu_seqlens_q;      ///< [B + 1] int32, from 0 to T, same device: sequence b brings rows [cu_seqlens_q[b],
                                ///< cu_seqlens_q[b + 1]).
};

/// Writes new keys and values into the pages of a cache, in place: the rows of a sequence become the last entries of
/// each of its heads' lists. Pages and lists are the caller's to book (engine/kv_cache.h).
/// @throws c10::Error naming the argument, what was expected and what was found. On a CPU tables and lengths are
/// checked before anything is written; on a GPU entries whose page or length does not fit are left out, unless
/// PRULONG_CHECK=1 makes them errors there too (masked_attention.h).
PRULONG_API void append_kv(const AppendArguments& arguments);

}  // namespace prulong
