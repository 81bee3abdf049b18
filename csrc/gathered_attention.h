// SPDX-License-Identifier: MIT
#pragma once

#include <tuple>

#include "csrc/ops/export.h"
#include "csrc/ops/paged_attention.h"
#include "csrc/page_lists.h"

namespace prulong {

/// paged_attention through masked_attention's backends, on any device: the entries of every head of every sequence are
/// gathered into a document of their own, so it needs memory for one copy of all that are attended to. For GPUs without
/// kernels that read pages.
/// @param lists  the arguments' lists, read and checked.
PRULONG_API std::tuple<at::Tensor, at::Tensor> gathered_attention(const PageLists& lists,
                                                                  const PagedArguments& arguments);

}  // namespace prulong
