// SPDX-License-Identifier: MIT
#include "csrc/cpu/paged_attention.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>

namespace prulong::pages {

void append(const PageLists& lists, const AppendArguments& arguments) {
  const auto& [k, v, k_pages, v_pages, page_table, lengths, cu_seqlens_q] = arguments;
  const int64_t tokens = k.size(0), heads = k.size(1), page = k_pages.size(1);
  const auto row_bytes = static_cast<size_t>(k.size(2) * k.element_size());
  const auto copy = [&](const at::Tensor& from, const at::Tensor& pool, int64_t token, int64_t head, int64_t entry) {
    const auto* source = static_cast<const char*>(from.const_data_ptr());
    auto* target = static_cast<char*>(pool.mutable_data_ptr());
    std::memcpy(target + static_cast<size_t>(entry) * row_bytes,
                source + (token * from.stride(0) + head * from.stride(1)) * from.element_size(), row_bytes);
  };
  const int64_t grain = std::max<int64_t>(1, (int64_t{1} << 16) / static_cast<int64_t>(row_bytes * heads));
  at::parallel_for(0, tokens, grain, [&](int64_t begin, int64_t end) {
    const std::vector<int>& bounds = lists.q_bounds;
    int64_t b = std::upper_bound(bounds.begin(), bounds.end(), begin) - bounds.begin() - 1;
    for (int64_t token = begin; token < end; ++token) {
      while (token >= bounds[b + 1]) ++b;
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t place = lists.length(b, h) - bounds[b + 1] + token;
        const int64_t entry = lists.pages(b, h)[place / page] * page + place % page;
        copy(k, k_pages, token, h, entry);
        copy(v, v_pages, token, h, entry);
      }
    }
  });
}

}  // namespace prulong::pages
