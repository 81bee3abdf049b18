// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "csrc/page_lists.h"

namespace prulong {

/// A cache's pages and lists, as append_kv and paged_attention take them.
struct PagedTensors {
  at::Tensor k_pages, v_pages, page_table, lengths, cu_seqlens_q;
};

/// Refuses pages and lists whose shape, dtype, device or strides do not fit the new rows [T, heads, D], an argument
/// called `name` that is checked already. Reads no data, so it serves fake and symbolic tensors too.
/// @throws c10::Error naming the operator, the argument, what was expected and what was found (all functions here).
void check_paged(const char* op, const char* name, const at::Tensor& rows, const PagedTensors& paged);

/// Which pages of its lists an operator touches.
enum class PagesUsed { kWholeLists, kNewRows };

/// Reads the lists to the host (copies on CUDA); refuses bounds that do not rise from 0 to `tokens`, sequences of more
/// than `max_seqlen_q` rows or of more rows than a head has entries, lists longer than the table, and pages in use that
/// the pool does not have.
PageLists read_page_lists(const char* op, const PagedTensors& paged, int64_t tokens, int64_t max_seqlen_q,
                          PagesUsed used);

}  // namespace prulong
