// SPDX-License-Identifier: MIT
#include "csrc/gathered_attention.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "csrc/attention_spec.h"
#include "csrc/cpu/blocked_attention.h"
#include "csrc/ops/checks.h"
#include "csrc/sdpa/sdpa_attention.h"
#include "csrc/sdpa/sdpa_branch.h"

namespace prulong {
namespace {

/// The documents of all sequences' heads of one kind, and where their rows come from.
struct Gathered {
  std::vector<DocumentRows> documents;
  std::vector<int64_t> entries;  // of the pool, as [P * page, D]
  std::vector<int64_t> rows;     // of the queries, as [T * Hkv, g, D]

  void add(const PageLists& lists, int64_t sequence, int64_t head, int64_t page) {
    const int length = lists.length(sequence, head), rows_begin = lists.q_bounds[sequence];
    TORCH_CHECK(static_cast<int64_t>(entries.size()) + length <= std::numeric_limits<int>::max(),
                "paged_attention: without kernels that read pages, a call may attend to less than 2^31 entries");
    documents.push_back({.q_begin = static_cast<int>(rows.size()),
                         .q_length = lists.rows(sequence),
                         .k_begin = static_cast<int>(entries.size()),
                         .k_length = length,
                         .index = static_cast<int>(documents.size())});
    const int32_t* pages = lists.pages(sequence, head);
    for (int64_t e = 0; e < length; ++e) entries.push_back(pages[e / page] * page + e % page);
    for (int64_t r = 0; r < lists.rows(sequence); ++r) rows.push_back((rows_begin + r) * lists.heads() + head);
  }
};

at::Tensor index_of(const std::vector<int64_t>& values, at::Device device) {
  return at::tensor(values, at::TensorOptions().dtype(at::kLong)).to(device);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> gathered_attention(const PageLists& lists, const PagedArguments& arguments) {
  const at::Tensor& q = arguments.q;
  const c10::OptionalDeviceGuard guard(q.device());
  const int64_t heads = lists.heads(), group = q.size(1) / heads, dim = q.size(2), page = arguments.k_pages.size(1);
  const at::Tensor rows = q.reshape({q.size(0) * heads, group, dim});
  const at::Tensor out = at::empty(q.sizes(), q.options());
  const at::Tensor lse = at::empty({q.size(0) * heads, group}, q.options().dtype(compute_type(q.scalar_type())));
  const at::Tensor host_kinds = arguments.is_global.to(at::kCPU).contiguous();
  const bool* is_global = host_kinds.const_data_ptr<bool>();

  for (const HeadKind kind : {HeadKind::kGlobal, HeadKind::kLocal}) {
    Gathered gathered;
    for (int64_t b = 0; b < lists.sequences(); ++b) {
      for (int64_t h = 0; h < heads; ++h) {
        if (lists.rows(b) > 0 && is_global[h] == (kind == HeadKind::kGlobal)) gathered.add(lists, b, h, page);
      }
    }
    if (gathered.documents.empty()) continue;
    const auto tokens = static_cast<int64_t>(gathered.entries.size());
    const at::Tensor entries = index_of(gathered.entries, q.device()), index = index_of(gathered.rows, q.device());
    const auto take = [&](const at::Tensor& pages) {
      return at::index_select(pages.view({-1, dim}), 0, entries).unsqueeze(1);
    };
    const AttentionSpec spec = {
        gathered.documents, {kind}, bounded(arguments.sink, arguments.window, tokens), arguments.scale};
    // Bounds and kinds on the device are not read: the spec says it all.
    const MaskedArguments masked = {.q = at::index_select(rows, 0, index),
                                    .k = take(arguments.k_pages),
                                    .v = take(arguments.v_pages),
                                    .is_global = {},
                                    .cu_seqlens_q = {},
                                    .cu_seqlens_k = {},
                                    .max_seqlen_q = 0,
                                    .max_seqlen_k = 0,
                                    .sink = arguments.sink,
                                    .window = arguments.window,
                                    .scale = arguments.scale};
    const auto [part_out, part_lse] = SdpaBranch::supports(masked.q, masked.scale)
                                          ? sdpa::masked_forward(spec, masked)
                                          : blocked::masked_forward(spec, masked);
    out.view({-1, group, dim}).index_copy_(0, index, part_out);
    at::Tensor(lse).index_copy_(0, index, part_lse.t());
  }
  return {out, lse.view({q.size(0), heads * group}).t().contiguous()};
}

}  // namespace prulong
