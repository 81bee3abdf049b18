// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include "engine/kv_cache.h"
#include "model/attention.h"

namespace prulong {

/// Attention of new tokens over a cache: each layer writes its new keys and values, attends over what its heads keep,
/// and what no later token sees is given back. Results do not depend on how a prompt is cut into chunks: on a CPU in
/// float32 not by a bit. No gradients.
class CachedAttention : public Attention {
 public:
  /// @param cache  outlives this object.
  /// @param step   of KvCache::append; the pass's tokens are the step's, sequence by sequence.
  /// @param scale  factor on q . k; 0: 1 / sqrt(head_dim).
  CachedAttention(KvCache& cache, CacheStep step, double scale = 0);

  at::Tensor attend(int64_t layer, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                    RecomputeState& state) override;
  at::Tensor gates(int64_t /*layer*/) const override { return {}; }
  bool independent_rows() const override { return true; }

 private:
  KvCache& cache_;
  CacheStep step_;
  double scale_;
};

}  // namespace prulong
