// SPDX-License-Identifier: MIT
#include "csrc/ops/paged_attention.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <array>
#include <utility>

#include "csrc/cpu/paged_attention.h"
#include "csrc/gathered_attention.h"
#include "csrc/hopper/paged_attention.h"
#include "csrc/ops/backend.h"
#include "csrc/ops/checks.h"
#include "csrc/ops/page_checks.h"

namespace prulong {
namespace {

constexpr const char* kOp = "paged_attention";
using Result = std::tuple<at::Tensor, at::Tensor>;

PagedTensors paged_tensors(const PagedArguments& a) {
  return {a.k_pages, a.v_pages, a.page_table, a.lengths, a.cu_seqlens_q};
}

void check_arguments(const PagedArguments& a) {
  check_tokens(kOp, "q", a.q);
  check_paged(kOp, "q", a.q, paged_tensors(a));
  const c10::SymInt kv_heads = a.page_table.sym_size(1);
  TORCH_CHECK(a.q.sym_size(1) % kv_heads == 0, kOp, ": q's heads must be a multiple of page_table's, got ",
              a.q.sym_size(1), " query heads and ", kv_heads, " key heads");
  check_per_head(kOp, "is_global", a.is_global, at::kBool, a.q, kv_heads);
  check_locality(kOp, a.sink, a.window, a.scale);
}

PageLists read_lists(const PagedArguments& a) {
  return read_page_lists(kOp, paged_tensors(a), a.q.size(0), a.max_seqlen_q.guard_int(__FILE__, __LINE__),
                         PagesUsed::kWholeLists);
}

bool on_hopper(const PagedArguments& a) { return may_use_hopper() && hopper::supports_paged(a); }

Result run(const PagedArguments& a) {
  check_arguments(a);
  if (on_hopper(a)) {
    if (checks_device_data()) read_lists(a);
    return hopper::paged_forward(a);
  }
  const PageLists lists = read_lists(a);
  return a.q.is_cpu() ? pages::attend(lists, a) : gathered_attention(lists, a);
}

Result run_meta(const PagedArguments& a) {
  check_arguments(a);
  const at::Tensor& q = a.q;
  const std::array<c10::SymInt, 2> lse_sizes = {q.sym_size(1), q.sym_size(0)};
  return {at::empty_symint(q.sym_sizes(), q.options()),
          at::empty_symint(lse_sizes, q.options().dtype(compute_type(q.scalar_type())))};
}

// The schema's flat list (library.cpp) as a struct.
template <Result (*kRun)(const PagedArguments&)>
Result paged_op(const at::Tensor& q, const at::Tensor& k_pages, const at::Tensor& v_pages, const at::Tensor& page_table,
                const at::Tensor& lengths, const at::Tensor& is_global, const at::Tensor& cu_seqlens_q,
                c10::SymInt max_seqlen_q, int64_t sink, int64_t window, double scale) {
  return kRun({q, k_pages, v_pages, page_table, lengths, is_global, cu_seqlens_q, std::move(max_seqlen_q), sink, window,
               scale});
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> paged_attention(const PagedArguments& arguments) {
  const auto& [q, k_pages, v_pages, page_table, lengths, is_global, cu_seqlens_q, max_seqlen_q, sink, window, scale] =
      arguments;
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("prulong::paged_attention", "").typed<decltype(paged_op<run>)>();
  return op.call(q, k_pages, v_pages, page_table, lengths, is_global, cu_seqlens_q, max_seqlen_q, sink, window, scale);
}

bool attends_without_waiting(const PagedArguments& arguments) { return on_hopper(arguments) && !checks_device_data(); }

TORCH_LIBRARY_IMPL(prulong, CPU, m) { m.impl("paged_attention", TORCH_FN(paged_op<run>)); }
TORCH_LIBRARY_IMPL(prulong, CUDA, m) { m.impl("paged_attention", TORCH_FN(paged_op<run>)); }
TORCH_LIBRARY_IMPL(prulong, Meta, m) { m.impl("paged_attention", TORCH_FN(paged_op<run_meta>)); }

}  // namespace prulong
