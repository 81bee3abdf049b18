// SPDX-License-Identifier: MIT
#include "engine/cached_attention.h"

#include <cmath>
#include <tuple>
#include <utility>

#include "csrc/ops/append_kv.h"
#include "csrc/ops/paged_attention.h"

namespace prulong {

CachedAttention::CachedAttention(KvCache& cache, CacheStep step, double scale)
    : cache_(cache),
      step_(std::move(step)),
      scale_(scale != 0 ? scale : 1.0 / std::sqrt(static_cast<double>(cache.options().head_dim))) {}

at::Tensor CachedAttention::attend(int64_t layer, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                   RecomputeState& /*state*/) {
  const at::Tensor& keys = cache_.k_pages();
  const at::Tensor& values = cache_.v_pages();
  cache_.copy_pages(step_, layer);
  const at::Tensor table = step_.page_table[layer], lengths = step_.lengths[layer];
  append_kv({k, v, keys, values, table, lengths, step_.cu_seqlens_q});
  const KvCacheOptions& options = cache_.options();
  return std::get<0>(paged_attention({q, keys, values, table, lengths, cache_.is_global(layer), step_.cu_seqlens_q,
                                      step_.max_seqlen_q, options.sink, options.window, scale_}));
}

}  // namespace prulong
