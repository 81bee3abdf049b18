// SPDX-License-Identifier: MIT
#include "csrc/ops/masked_attention.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <array>
#include <utility>
#include <vector>

#include "csrc/cpu/blocked_attention.h"
#include "csrc/hopper/hopper_attention.h"
#include "csrc/ops/backend.h"
#include "csrc/ops/checks.h"
#include "csrc/sdpa/sdpa_attention.h"

namespace prulong {
namespace {

constexpr const char* kOp = "masked_attention";
using Result = std::tuple<at::Tensor, at::Tensor>;

void check_arguments(const MaskedArguments& a) {
  check_qkv(kOp, a.q, a.k, a.v, /*same_tokens=*/false);
  check_per_head(kOp, "is_global", a.is_global, at::kBool, a.q, a.k.sym_size(1));
  check_cu_seqlens(kOp, "cu_seqlens_q", a.cu_seqlens_q, a.q);
  check_cu_seqlens(kOp, "cu_seqlens_k", a.cu_seqlens_k, a.q);
  TORCH_CHECK(a.cu_seqlens_k.sym_size(0) == a.cu_seqlens_q.sym_size(0), kOp, ": cu_seqlens_k must have as many ",
              "documents as cu_seqlens_q, ", a.cu_seqlens_q.sym_size(0) - 1, ", got ", a.cu_seqlens_k.sym_size(0) - 1);
  check_locality(kOp, a.sink, a.window, a.scale);
}

std::vector<HeadKind> read_kinds(const at::Tensor& is_global) {
  const at::Tensor host = is_global.to(at::kCPU).contiguous();
  std::vector<HeadKind> kinds;
  for (int64_t h = 0; h < host.numel(); ++h) {
    kinds.push_back(host.const_data_ptr<bool>()[h] ? HeadKind::kGlobal : HeadKind::kLocal);
  }
  return kinds;
}

AttentionSpec read_spec(const MaskedArguments& a) {
  const Bounds q_bounds = read_bounds(kOp, "cu_seqlens_q", a.cu_seqlens_q, a.q.size(0), "max_seqlen_q",
                                      a.max_seqlen_q.guard_int(__FILE__, __LINE__));
  const Bounds k_bounds = read_bounds(kOp, "cu_seqlens_k", a.cu_seqlens_k, a.k.size(0), "max_seqlen_k",
                                      a.max_seqlen_k.guard_int(__FILE__, __LINE__));
  const std::vector<DocumentRows> documents = make_documents(q_bounds, k_bounds);
  for (const DocumentRows& document : documents) {
    TORCH_CHECK(document.q_length <= document.k_length, kOp, ": a document must have at least as many keys as queries",
                ", got ", document.q_length, " queries and ", document.k_length, " keys in document ", document.index);
  }
  return {documents, read_kinds(a.is_global), bounded(a.sink, a.window, a.k.size(0)), a.scale};
}

Result run(const MaskedArguments& a) {
  check_arguments(a);
  return run_on(
      choose_backend(a.q, a.k, a.cu_seqlens_q, a.scale), [&] { return read_spec(a); },
      [&] { return hopper::masked_forward(a); },
      [&](const AttentionSpec& spec) { return sdpa::masked_forward(spec, a); },
      [&](const AttentionSpec& spec) { return blocked::masked_forward(spec, a); });
}

Result run_meta(const MaskedArguments& a) {
  check_arguments(a);
  const at::Tensor& q = a.q;
  const std::array<c10::SymInt, 2> lse_sizes = {q.sym_size(1), q.sym_size(0)};
  return {at::empty_symint(q.sym_sizes(), q.options()),
          at::empty_symint(lse_sizes, q.options().dtype(compute_type(q.scalar_type())))};
}

// The schema's flat list (library.cpp) as a struct.
template <Result (*kRun)(const MaskedArguments&)>
Result masked_op(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& is_global,
                 const at::Tensor& cu_seqlens_q, const at::Tensor& cu_seqlens_k, c10::SymInt max_seqlen_q,
                 c10::SymInt max_seqlen_k, int64_t sink, int64_t window, double scale) {
  return kRun({q, k, v, is_global, cu_seqlens_q, cu_seqlens_k, std::move(max_seqlen_q), std::move(max_seqlen_k), sink,
               window, scale});
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> masked_attention(const MaskedArguments& arguments) {
  const auto& [q, k, v, is_global, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, sink, window, scale] =
      arguments;
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("prulong::masked_attention", "").typed<decltype(masked_op<run>)>();
  return op.call(q, k, v, is_global, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, sink, window, scale);
}

TORCH_LIBRARY_IMPL(prulong, CPU, m) { m.impl("masked_attention", TORCH_FN(masked_op<run>)); }
TORCH_LIBRARY_IMPL(prulong, CUDA, m) { m.impl("masked_attention", TORCH_FN(masked_op<run>)); }
TORCH_LIBRARY_IMPL(prulong, Meta, m) { m.impl("masked_attention", TORCH_FN(masked_op<run_meta>)); }

}  // namespace prulong
