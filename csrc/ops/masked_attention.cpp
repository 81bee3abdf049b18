// SPDX-License-Identifier: MIT
#include "csrc/ops/masked_attention.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <array>
#include <vector>

#include "csrc/cpu/blocked_jobs.h"
#include "csrc/head_groups.h"
#include "csrc/hopper/hopper_attention.h"
#include "csrc/ops/checks.h"
#include "csrc/sdpa/sdpa_branch.h"

namespace prulong {
namespace {

constexpr const char* kOp = "masked_attention";
using Result = std::tuple<at::Tensor, at::Tensor>;
using Signature = Result(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                         const at::Tensor&, c10::SymInt, c10::SymInt, int64_t, int64_t, double);

void check_inputs(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& is_global,
                  const at::Tensor& cu_seqlens_q, const at::Tensor& cu_seqlens_k, int64_t sink, int64_t window,
                  double scale) {
  check_qkv(kOp, q, k, v, /*same_tokens=*/false);
  check_per_head(kOp, "is_global", is_global, at::kBool, q, k);
  check_cu_seqlens(kOp, "cu_seqlens_q", cu_seqlens_q, q);
  check_cu_seqlens(kOp, "cu_seqlens_k", cu_seqlens_k, q);
  TORCH_CHECK(cu_seqlens_k.sym_size(0) == cu_seqlens_q.sym_size(0), kOp, ": cu_seqlens_k must have as many documents ",
              "as cu_seqlens_q, ", cu_seqlens_q.sym_size(0) - 1, ", got ", cu_seqlens_k.sym_size(0) - 1);
  check_locality(kOp, sink, window, scale);
}

std::vector<HeadKind> read_kinds(const at::Tensor& is_global) {
  const at::Tensor host = is_global.to(at::kCPU).contiguous();
  std::vector<HeadKind> kinds;
  for (int64_t h = 0; h < host.numel(); ++h) {
    kinds.push_back(host.const_data_ptr<bool>()[h] ? HeadKind::kGlobal : HeadKind::kLocal);
  }
  return kinds;
}

Result run(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& is_global,
           const at::Tensor& cu_seqlens_q, const at::Tensor& cu_seqlens_k, int64_t max_seqlen_q, int64_t max_seqlen_k,
           int64_t sink, int64_t window, double scale) {
  check_inputs(q, k, v, is_global, cu_seqlens_q, cu_seqlens_k, sink, window, scale);
  if (hopper::supports(q, k, cu_seqlens_q, scale)) {
    return hopper::masked_forward(q, k, v, is_global, cu_seqlens_q, cu_seqlens_k, bounded(sink, window, k.size(0)),
                                  scale);
  }
  const Bounds q_bounds = read_bounds(kOp, "cu_seqlens_q", cu_seqlens_q, q.size(0), "max_seqlen_q", max_seqlen_q);
  const Bounds k_bounds = read_bounds(kOp, "cu_seqlens_k", cu_seqlens_k, k.size(0), "max_seqlen_k", max_seqlen_k);
  const AttentionSpec spec = {make_documents(q_bounds, k_bounds), bounded(sink, window, k.size(0)), scale};
  for (size_t d = 0; d < spec.documents.size(); ++d) {
    const DocumentRows& document = spec.documents[d];
    TORCH_CHECK(document.q_length <= document.k_length, kOp, ": a document must have at least as many keys as queries",
                ", got ", document.q_length, " queries and ", document.k_length, " keys in document ", d);
  }
  const int64_t kv_heads = k.size(1);
  const at::Tensor out = at::empty(q.sizes(), q.options());
  const at::Tensor lse = at::empty({q.size(1), q.size(0)}, q.options().dtype(compute_type(q.scalar_type())));
  const bool by_sdpa = SdpaBranch::supports(q, scale);
  const at::Tensor keys = by_sdpa ? at::Tensor() : keys_by_head(k);
  const at::Tensor values = by_sdpa ? at::Tensor() : keys_by_head(v);
  std::vector<ForwardJob> jobs;
  std::vector<HeadSlice> slices;
  for (const HeadGroup& group : group_heads(read_kinds(is_global), q.is_cuda())) {
    slices.emplace_back(split_query_heads(out, kv_heads), 1, group.heads);
    const at::Tensor out_part = slices.back().part();
    slices.emplace_back(lse.unflatten(0, {kv_heads, -1}), 0, group.heads);
    const at::Tensor lse_part = slices.back().part();
    const at::Tensor q_part = take_heads(split_query_heads(q, kv_heads), 1, group.heads);
    if (by_sdpa) {
      auto [o, o_lse] =
          SdpaBranch(spec, group.kind == HeadKind::kLocal, q.device())
              .forward(q_part.flatten(1, 2), take_heads(k, 1, group.heads), take_heads(v, 1, group.heads));
      out_part.copy_(o.unflatten(1, {-1, q_part.size(2)}));
      lse_part.copy_(o_lse.unflatten(0, {-1, q_part.size(2)}));
      continue;
    }
    jobs.push_back({.kind = group.kind,
                    .q = q_part,
                    .k = take_heads(keys, 0, group.heads),
                    .v = take_heads(values, 0, group.heads),
                    .gate = {},
                    .out = out_part,
                    .delta = {},
                    .lse_global = lse_part,
                    .lse_local = lse_part});
  }
  blocked_forward(spec, jobs);
  for (const HeadSlice& part : slices) part.write_back();
  return {out, lse};
}

Result run_meta(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& is_global,
                const at::Tensor& cu_seqlens_q, const at::Tensor& cu_seqlens_k, c10::SymInt /*max_seqlen_q*/,
                c10::SymInt /*max_seqlen_k*/, int64_t sink, int64_t window, double scale) {
  check_inputs(q, k, v, is_global, cu_seqlens_q, cu_seqlens_k, sink, window, scale);
  const std::array<c10::SymInt, 2> lse_sizes = {q.sym_size(1), q.sym_size(0)};
  return {at::empty_symint(q.sym_sizes(), q.options()),
          at::empty_symint(lse_sizes, q.options().dtype(compute_type(q.scalar_type())))};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> masked_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                    const at::Tensor& is_global, const at::Tensor& cu_seqlens_q,
                                                    const at::Tensor& cu_seqlens_k, int64_t max_seqlen_q,
                                                    int64_t max_seqlen_k, int64_t sink, int64_t window, double scale) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("prulong::masked_attention", "").typed<Signature>();
  return op.call(q, k, v, is_global, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, sink, window, scale);
}

TORCH_LIBRARY_IMPL(prulong, CPU, m) { m.impl("masked_attention", TORCH_FN(run)); }
TORCH_LIBRARY_IMPL(prulong, CUDA, m) { m.impl("masked_attention", TORCH_FN(run)); }
TORCH_LIBRARY_IMPL(prulong, Meta, m) { m.impl("masked_attention", TORCH_FN(run_meta)); }

}  // namespace prulong
