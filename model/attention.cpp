// SPDX-License-Identifier: MIT
#include "model/attention.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>

#include "common/error.h"
#include "csrc/ops/gated_attention.h"
#include "csrc/ops/masked_attention.h"

namespace prulong {
namespace {

/// One row of heads per layer; gates as float32, which the operators take beside half-precision and float32 inputs.
std::vector<at::Tensor> head_rows(const HeadMask& mask, const ModelConfig& config, at::Device device) {
  const at::Tensor& heads = mask.heads;
  if (!heads.defined()) {
    const at::Tensor all_global = at::ones({config.kv_heads}, at::TensorOptions().dtype(at::kFloat).device(device));
    return std::vector<at::Tensor>(static_cast<size_t>(config.layers), all_global);
  }
  if (heads.sizes() != at::IntArrayRef({config.layers, config.kv_heads})) {
    std::string shape;
    for (const int64_t size : heads.sizes()) shape += (shape.empty() ? "" : ", ") + std::to_string(size);
    throw Error("the head mask has shape [" + shape + "], the model has [" + std::to_string(config.layers) + ", " +
                std::to_string(config.kv_heads) + "] (layers, KV heads); give one value for each of its heads");
  }
  const bool is_gate = heads.scalar_type() == at::kFloat || heads.scalar_type() == at::kDouble;
  if ((!is_gate && heads.scalar_type() != at::kBool) || heads.device() != device) {
    throw Error("the head mask must be float32 or bool on " + device.str() + ", found " +
                c10::toString(heads.scalar_type()) + " on " + heads.device().str() + "; convert it first");
  }
  return heads.unbind(0);
}

/// The places of gates that are neither 0 nor 1 in each of the last `count` layers, on the gates' device; undefined for
/// the others. Waits for a GPU once.
std::vector<at::Tensor> fractional_heads(const std::vector<at::Tensor>& heads, int64_t count) {
  const auto layers = static_cast<int64_t>(heads.size());
  const int64_t first = layers - std::min(count, layers);
  std::vector<at::Tensor> places(heads.size());
  if (first == layers || heads[0].scalar_type() == at::kBool) return places;
  const at::Tensor gates = at::stack(heads).detach().cpu();
  const at::Tensor fractional = gates.gt(0).logical_and_(gates.lt(1));
  for (int64_t l = first; l < layers; ++l) {
    places[static_cast<size_t>(l)] = fractional[l].nonzero().flatten().to(heads[0].device());
  }
  return places;
}

/// Gated attention whose results a second run keeps: out, both log-sum-exps, and delta of the fractional heads, the
/// only ones that read it.
at::Tensor kept_attention(const GatedArguments& arguments, const at::Tensor& fractional, RecomputeState& state) {
  const auto by_key_head = [&](const at::Tensor& t) { return t.view({t.size(0), arguments.gate.size(0), -1}); };
  if (!state.again) {
    const GatedResults results = gated_attention_results(arguments);
    at::Tensor delta;
    if (fractional.numel() > 0) delta = by_key_head(results.delta).index_select(1, fractional);
    state.kept = {results.out, results.lse_global, results.lse_local, delta};
    return results.out;
  }
  const at::Tensor delta = at::zeros(arguments.q.sizes(), arguments.q.options());
  if (state.kept[3].defined()) by_key_head(delta).index_copy_(1, fractional, state.kept[3]);
  return gated_attention_from({state.kept[0], delta, state.kept[1], state.kept[2]}, arguments);
}

}  // namespace

HeadMask HeadMask::from_pattern(const Pattern& pattern, const ModelConfig& config, at::Device device) {
  pattern.check_fits(config.shape());
  if (pattern.mask.size() != static_cast<size_t>(config.layers * config.kv_heads)) {
    throw Error("the pattern's mask has " + std::to_string(pattern.mask.size()) + " entries, the model has " +
                std::to_string(config.layers * config.kv_heads) + " KV heads; load a pattern that was made for it");
  }
  at::Tensor heads = at::empty({config.layers, config.kv_heads}, at::TensorOptions().dtype(at::kBool));
  auto* head = heads.mutable_data_ptr<bool>();
  for (const uint8_t value : pattern.mask) *head++ = value != 0;
  return {heads.to(device), pattern.sink, pattern.window};
}

PackedAttention::PackedAttention(const ModelConfig& config, const PackedTokens& input, const HeadMask& mask,
                                 int64_t kept_results)
    : cu_seqlens_(input.cu_seqlens),
      max_seqlen_(input.max_seqlen),
      sink_(mask.sink),
      window_(mask.window),
      heads_(head_rows(mask, config, input.cu_seqlens.device())),
      fractional_(fractional_heads(heads_, kept_results)) {}

at::Tensor PackedAttention::gates(int64_t layer) const {
  const at::Tensor& heads = heads_.at(static_cast<size_t>(layer));
  return heads.scalar_type() == at::kBool ? at::Tensor() : heads;
}

at::Tensor PackedAttention::attend(int64_t layer, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                   RecomputeState& state) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(q.size(-1)));
  const at::Tensor& heads = heads_.at(static_cast<size_t>(layer));
  if (heads.scalar_type() == at::kBool) {
    if (c10::GradMode::is_enabled() && q.requires_grad()) {
      throw Error(
          "a head mask of dtype bool has no gradients; to train weights under a mask give it as float32 zeros and "
          "ones");
    }
    return std::get<0>(
        masked_attention({q, k, v, heads, cu_seqlens_, cu_seqlens_, max_seqlen_, max_seqlen_, sink_, window_, scale}));
  }
  const at::Tensor gates =
      (state.gates.defined() ? state.gates : heads).to(q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  const GatedArguments arguments = {q, k, v, gates, cu_seqlens_, max_seqlen_, sink_, window_, scale};
  const at::Tensor& fractional = fractional_[static_cast<size_t>(layer)];
  return fractional.defined() ? kept_attention(arguments, fractional, state) : gated_attention(arguments);
}

}  // namespace prulong
