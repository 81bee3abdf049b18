// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "model/attention.h"
#include "model/rope.h"
#include "model/row_functions.h"
#include "model/weights.h"

namespace prulong {

/// What all layers share in one forward pass.
struct LayerContext {
  const RowFunctions* functions;
  RopeTable rope;
  int64_t head_dim;
  double rms_norm_eps;
  std::shared_ptr<Attention> attention;
};

/// Decoder layer `index` over x [T, hidden].
at::Tensor layer_forward(const LayerContext& context, int64_t index, const LayerWeights& weights, const at::Tensor& x);

/// The same, keeping only x for the backward pass, and what `context.attention` chooses to keep (beside what outlives
/// the pass anyway: weights, gates, context).
at::Tensor layer_forward_recomputed(const std::shared_ptr<const LayerContext>& context, int64_t index,
                                    const LayerWeights& weights, const at::Tensor& x);

}  // namespace prulong
