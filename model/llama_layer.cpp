// SPDX-License-Identifier: MIT
#include "model/llama_layer.h"

#include <ATen/ops/cat.h>

#include <algorithm>
#include <iterator>
#include <vector>

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

/// Rows of the MLP that exist at one time: gate and up are several times as wide as what they are made from.
constexpr int64_t kMlpRows = 8192;

/// x + the attention block's output.
at::Tensor attention_half(const LayerContext& context, int64_t index, const LayerWeights& weights, const at::Tensor& x,
                          RecomputeState& state) {
  const RowFunctions& f = *context.functions;
  const at::Tensor normed = f.rms_norm(x, weights.input_norm, context.rms_norm_eps);
  const auto heads_of = [&](const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& norm) {
    at::Tensor flat = f.linear(normed, weight, bias).view({-1, context.head_dim});
    if (norm.defined()) flat = f.rms_norm(flat, norm, context.rms_norm_eps);
    return flat.view({x.size(0), -1, context.head_dim});
  };
  const at::Tensor q = f.rotate(heads_of(weights.q, weights.q_bias, weights.q_norm), context.rope);
  const at::Tensor k = f.rotate(heads_of(weights.k, weights.k_bias, weights.k_norm), context.rope);
  const at::Tensor v = heads_of(weights.v, weights.v_bias, {});
  // In place on a fresh product: nothing has saved it for a backward pass.
  return f.linear(context.attention->attend(index, q, k, v, state).flatten(1), weights.o, {}).add_(x);
}

/// x + the MLP's output, some rows at a time: rows do not depend on each other.
at::Tensor mlp_half(const LayerContext& context, const LayerWeights& weights, const at::Tensor& x,
                    const RecomputeState& state) {
  const RowFunctions& f = *context.functions;
  const at::Tensor inner = f.rms_norm(x, weights.post_norm, context.rms_norm_eps);
  const auto rows = [&](int64_t begin, int64_t count) {
    const at::Tensor part = inner.narrow(0, begin, count), residual = x.narrow(0, begin, count);
    const at::Tensor gate = f.linear(part, weights.gate, {}), up = f.linear(part, weights.up, {});
    if (state.again) return feed_forward_gradients(gate, up, weights.down, residual);
    return f.linear(f.swiglu(gate, up), weights.down, {}).add_(residual);
  };
  const int64_t count = x.size(0);
  if (count <= kMlpRows) return rows(0, count);
  std::vector<at::Tensor> parts;
  for (int64_t begin = 0; begin < count; begin += kMlpRows)
    parts.push_back(rows(begin, std::min(kMlpRows, count - begin)));
  return at::cat(parts);
}

/// One run of a layer.
at::Tensor run_layer(const LayerContext& context, int64_t index, const LayerWeights& weights, const at::Tensor& x,
                     RecomputeState& state) {
  return mlp_half(context, weights, attention_half(context, index, weights, x, state), state);
}

}  // namespace

at::Tensor layer_forward(const LayerContext& context, int64_t index, const LayerWeights& weights, const at::Tensor& x) {
  RecomputeState once;
  return run_layer(context, index, weights, x, once);
}

at::Tensor layer_forward_recomputed(const std::shared_ptr<const LayerContext>& context, int64_t index,
                                    const LayerWeights& weights, const at::Tensor& x) {
  std::vector<at::Tensor> inputs{x};
  const at::Tensor gates = context->attention->gates(index);
  if (gates.defined()) inputs.push_back(gates);
  std::vector<at::Tensor LayerWeights::*> members;  // those that this model has
  for (const auto member : kMembers) {
    if (!(weights.*member).defined()) continue;
    inputs.push_back(weights.*member);
    members.push_back(member);
  }
  const auto function = [context, index, members, gated = gates.defined()](const std::vector<at::Tensor>& in,
                                                                           RecomputeState& state) {
    size_t next = 1;
    if (gated) state.gates = in[next++];
    LayerWeights given;
    for (const auto member : members) given.*member = in[next++];
    return run_layer(*context, index, given, in[0], state);
  };
  return recomputed(function, inputs);
}

}  // namespace prulong
