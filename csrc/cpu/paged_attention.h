// SPDX-License-Identifier: MIT
#pragma once

#include <tuple>

#include "csrc/ops/append_kv.h"
#include "csrc/ops/paged_attention.h"
#include "csrc/page_lists.h"

/// The operators over a cache's pages on the CPU. Arguments as in the operators' headers, checked; the lists are
/// theirs.
namespace prulong::pages {

/// append_kv: copies, in parallel.
void append(const PageLists& lists, const AppendArguments& arguments);

/// paged_attention, page by page (page_kernel.h).
std::tuple<at::Tensor, at::Tensor> attend(const PageLists& lists, const PagedArguments& arguments);

}  // namespace prulong::pages
