// SPDX-License-Identifier: MIT
#include "model/llama_layer.h"

#include <c10/core/GradMode.h>

#include <cmath>
#include <iterator>
#include <tuple>
#include <vector>

#include "csrc/gated_attention.h"
#include "csrc/masked_attention.h"
#include "model/error.h"
#include "model/layer_functions.h"
#include "model/recompute.h"

namespace prulong {
namespace {

constexpr at::Tensor LayerWeights::*kMembers[] = {
    &LayerWeights::input_norm, &LayerWeights::q,         &LayerWeights::k,      &LayerWeights::v,
    &LayerWeights::o,          &LayerWeights::post_norm, &LayerWeights::gate,   &LayerWeights::up,
    &LayerWeights::down,       &LayerWeights::q_bias,    &LayerWeights::k_bias, &LayerWeights::v_bias,
    &LayerWeights::q_norm,     &LayerWeights::k_norm};
static_assert(sizeof(LayerWeights) == std::size(kMembers) * sizeof(at::Tensor), "a member is missing above");

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
  const at::Tensor normed = rms_norm(x, weights.input_norm, context.rms_norm_eps);
  const auto heads_of = [&](const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& norm) {
    at::Tensor flat = project(normed, weight, bias).view({-1, context.head_dim});
    if (norm.defined()) flat = rms_norm(flat, norm, context.rms_norm_eps);
    return flat.view({x.size(0), -1, context.head_dim});
  };
  const at::Tensor q = apply_rope(heads_of(weights.q, weights.q_bias, weights.q_norm), context.rope);
  const at::Tensor k = apply_rope(heads_of(weights.k, weights.k_bias, weights.k_norm), context.rope);
  const at::Tensor v = heads_of(weights.v, weights.v_bias, {});
  // In place on a fresh product: nothing has saved it for a backward pass.
  const at::Tensor middle = project(attention(context, q, k, v, heads).flatten(1), weights.o).add_(x);
  const at::Tensor inner = rms_norm(middle, weights.post_norm, context.rms_norm_eps);
  return project(swiglu(project(inner, weights.gate), project(inner, weights.up)), weights.down).add_(middle);
}

at::Tensor layer_forward_recomputed(const std::shared_ptr<const LayerContext>& context, const LayerWeights& weights,
                                    const at::Tensor& x, const at::Tensor& heads) {
  std::vector<at::Tensor> inputs{x, heads};
  std::vector<at::Tensor LayerWeights::*> members;  // those that this model has
  for (const auto member : kMembers) {
    if (!(weights.*member).defined()) continue;
    inputs.push_back(weights.*member);
    members.push_back(member);
  }
  const auto function = [context, members](const std::vector<at::Tensor>& in) {
    LayerWeights given;
    for (size_t i = 0; i < members.size(); ++i) given.*members[i] = in[2 + i];
    return layer_forward(*context, given, in[0], in[1]);
  };
  return recomputed(function, inputs);
}

}  // namespace prulong
