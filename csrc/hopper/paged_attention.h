// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "csrc/ops/paged_attention.h"

/// Attention over a paged cache by our own kernels for Hopper GPUs. Nothing waits for the device, so what lies on it is
/// not checked: queries' bounds that do not rise from 0 to the number of tokens, fewer entries than queries, pages
/// outside the pool give NaN, in the rows concerned at least. Calls can be captured in a CUDA graph and replayed with
/// other lengths and tables.
namespace prulong::hopper {

/// Can the kernels compute this? On compute capability 9.0, for float16 or bfloat16, head_dim 64 or 128, pages of 128
/// entries, 0 < scale <= 128, at least one token and one page, and sizes within the limits of csrc/hopper/address.h.
/// Arguments as in the operator's header, already checked for shape, dtype and device.
bool supports_paged(const PagedArguments& arguments);

/// out [T, Hq, D] and log-sum-exp [Hq, T] float32. Where a sequence has at most 64 rows, max_seqlen_q times the group's
/// query heads, by the decode kernel, at the speed of memory; else by the forward kernel.
std::tuple<at::Tensor, at::Tensor> paged_forward(const PagedArguments& arguments);

}  // namespace prulong::hopper
