// SPDX-License-Identifier: MIT
#include "model/llama_layer.h"

#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include <cmath>
#include <iterator>
#include <tuple>
#include <vector>

#include "common/error.h"
#include "csrc/ops/gated_attention.h"
#include "csrc/ops/masked_attention.h"
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

/// Gated attention whose results a replay keeps: out, both log-sum-exps, and delta of the fractional heads, the only
/// ones that read it.
at::Tensor kept_attention(const LayerContext& context, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const at::Tensor& gates, double scale, const at::Tensor& fractional, Replay& replay) {
  const auto by_key_head = [&](const at::Tensor& t) { return t.view({t.size(0), gates.size(0), -1}); };
  if (!replay.again) {
    const GatedResults results = gated_attention_results(q, k, v, gates, context.cu_seqlens, context.max_seqlen,
                                                         context.sink, context.window, scale);
    at::Tensor delta;
    if (fractional.numel() > 0) delta = by_key_head(results.delta).index_select(1, fractional);
    replay.kept = {results.out, results.lse_global, results.lse_local, delta};
    return results.out;
  }
  const at::Tensor delta = at::zeros(q.sizes(), q.options());
  if (replay.kept[3].defined()) by_key_head(delta).index_copy_(1, fractional, replay.kept[3]);
  return gated_attention_from({replay.kept[0], delta, replay.kept[1], replay.kept[2]}, q, k, v, gates,
                              context.cu_seqlens, context.max_seqlen, context.sink, context.window, scale);
}

at::Tensor attention(const LayerContext& context, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const at::Tensor& heads, const at::Tensor& fractional, Replay& replay) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(context.head_dim));
  if (heads.scalar_type() != at::kBool) {
    if (fractional.defined()) return kept_attention(context, q, k, v, heads, scale, fractional, replay);
    return gated_attention(q, k, v, heads, context.cu_seqlens, context.max_seqlen, context.sink, context.window, scale);
  }
  if (c10::GradMode::is_enabled() && q.requires_grad()) {
    throw Error(
        "head roles of dtype bool have no gradients; to train weights under a mask give it as float32 zeros and ones");
  }
  return std::get<0>(masked_attention(q, k, v, heads, context.cu_seqlens, context.cu_seqlens, context.max_seqlen,
                                      context.max_seqlen, context.sink, context.window, scale));
}

/// One run of a layer.
at::Tensor run_layer(const LayerContext& context, const LayerWeights& weights, const at::Tensor& x,
                     const at::Tensor& heads, const at::Tensor& fractional, Replay& replay) {
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
  const at::Tensor middle =
      project(attention(context, q, k, v, heads, fractional, replay).flatten(1), weights.o).add_(x);
  const at::Tensor inner = rms_norm(middle, weights.post_norm, context.rms_norm_eps);
  const at::Tensor gate = project(inner, weights.gate), up = project(inner, weights.up);
  if (replay.again) return feed_forward_gradients(gate, up, weights.down, middle);
  return project(swiglu(gate, up), weights.down).add_(middle);
}

}  // namespace

at::Tensor layer_forward(const LayerContext& context, const LayerWeights& weights, const at::Tensor& x,
                         const at::Tensor& heads) {
  Replay once;
  return run_layer(context, weights, x, heads, {}, once);
}

at::Tensor layer_forward_recomputed(const std::shared_ptr<const LayerContext>& context, const LayerWeights& weights,
                                    const at::Tensor& x, const at::Tensor& heads, const at::Tensor& fractional) {
  std::vector<at::Tensor> inputs{x, heads};
  std::vector<at::Tensor LayerWeights::*> members;  // those that this model has
  for (const auto member : kMembers) {
    if (!(weights.*member).defined()) continue;
    inputs.push_back(weights.*member);
    members.push_back(member);
  }
  const auto function = [context, members, fractional](const std::vector<at::Tensor>& in, Replay& replay) {
    LayerWeights given;
    for (size_t i = 0; i < members.size(); ++i) given.*members[i] = in[2 + i];
    return run_layer(*context, given, in[0], in[1], fractional, replay);
  };
  return recomputed(function, inputs);
}

}  // namespace prulong
