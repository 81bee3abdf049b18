// SPDX-License-Identifier: MIT
#include "model/llama_layer.h"

#include <c10/core/GradMode.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "csrc/gated_attention.h"
#include "csrc/masked_attention.h"
#include "model/error.h"
#include "model/layer_functions.h"
#include "model/recompute.h"

namespace prulong {
namespace {

at::Tensor attention(const LayerContext& context, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const at::Tensor& heads) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(context.head_dim));
  if (heads.scalar_type() != at::kBool) {
    return gated_attention(q, k, v, heads, context.cu_seqlens, context.max_seqlen, context.sink, context.window, scale);
  }
  if (c10::GradMode::is_enabled() && q.requires_grad()) {
    throw Error(
        "head roles of dtype bool have no gradients; to train weights under a mask give it as float32 zeros and ones");
  }
  return std::get<0>(masked_attention(q, k, v, heads, context.cu_seqlens, context.cu_seqlens, context.max_seqlen,
                                      context.max_seqlen, context.sink, context.window, scale));
}

}  // namespace

at::Tensor layer_forward(const LayerContext& context, const LayerWeights& weights, const at::Tensor& x,
                         const at::Tensor& heads) {
  const auto split = [&](const at::Tensor& flat) { return flat.view({flat.size(0), -1, context.head_dim}); };
  const at::Tensor normed = rms_norm(x, weights.input_norm, context.rms_norm_eps);
  const at::Tensor q = apply_rope(split(project(normed, weights.q)), context.rope);
  const at::Tensor k = apply_rope(split(project(normed, weights.k)), context.rope);
  const at::Tensor v = split(project(normed, weights.v));
  // In place on a fresh product: nothing has saved it for a backward pass.
  const at::Tensor middle = project(attention(context, q, k, v, heads).flatten(1), weights.o).add_(x);
  const at::Tensor inner = rms_norm(middle, weights.post_norm, context.rms_norm_eps);
  return project(swiglu(project(inner, weights.gate), project(inner, weights.up)), weights.down).add_(middle);
}

at::Tensor layer_forward_recomputed(const std::shared_ptr<const LayerContext>& context, const LayerWeights& weights,
                                    const at::Tensor& x, const at::Tensor& heads) {
  const auto function = [context](const std::vector<at::Tensor>& in) {
    return layer_forward(*context, {in[2], in[3], in[4], in[5], in[6], in[7], in[8], in[9], in[10]}, in[0], in[1]);
  };
  const LayerWeights& w = weights;
  return recomputed(function, {x, heads, w.input_norm, w.q, w.k, w.v, w.o, w.post_norm, w.gate, w.up, w.down});
}

}  // namespace prulong
