// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "model/rope.h"

namespace prulong {

/// Weights of one decoder layer: norms [hidden], q [Hq * D, hidden], k and v [Hkv * D, hidden], o [hidden, Hq * D],
/// gate and up [mlp, hidden], down [hidden, mlp].
struct LayerWeights {
  at::Tensor input_norm, q, k, v, o, post_norm, gate, up, down;
  at::Tensor q_bias, k_bias, v_bias;  ///< [Hq * D], [Hkv * D], [Hkv * D]; undefined where the model has none
  at::Tensor q_norm, k_norm;          ///< [D], over each head; undefined where the model has none
};

/// What all layers share in one forward pass.
struct LayerContext {
  RopeTable rope;
  at::Tensor cu_seqlens;  ///< [docs + 1] int32
  int64_t max_seqlen;
  int64_t sink;
  int64_t window;
  int64_t head_dim;
  double rms_norm_eps;
};

/// One decoder layer over x [T, hidden].
/// @param heads  [Hkv], floating: gates of gated_attention; bool: heads of masked_attention, without gradients.
at::Tensor layer_forward(const LayerContext& context, const LayerWeights& weights, const at::Tensor& x,
                         const at::Tensor& heads);

/// The same, keeping only x for the backward pass (and what outlives the pass anyway: weights, heads, context).
/// @param fractional  with it, gated attention's results are kept too and not computed again: [n] int64 on x's device,
///                    the heads whose gate is neither 0 nor 1.
at::Tensor layer_forward_recomputed(const std::shared_ptr<const LayerContext>& context, const LayerWeights& weights,
                                    const at::Tensor& x, const at::Tensor& heads, const at::Tensor& fractional = {});

}  // namespace prulong
