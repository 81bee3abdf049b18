// SPDX-License-Identifier: MIT
#include "model/llama.h"

#include <ATen/TensorIterator.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "common/error.h"
#include "model/llama_layer.h"
#include "model/rope.h"
#include "model/row_functions.h"

namespace prulong {
namespace {

/// The tensor itself where nothing changes.
at::Tensor converted(const at::Tensor& tensor, at::ScalarType dtype, at::Device device) {
  if (!device.is_cpu() || tensor.scalar_type() == dtype) return tensor.to(device, dtype);
  // In slices too small for torch to share among threads: the time goes into fresh pages, for which threads only queue
  // (on a virtual machine of two busy cores two threads took four times as long as one).
  constexpr int64_t kSlice = at::internal::GRAIN_SIZE;
  at::Tensor result = at::empty(tensor.sizes(), tensor.options().dtype(dtype));
  const at::Tensor from = tensor.view(-1), to = result.view(-1);
  for (int64_t begin = 0; begin < from.numel(); begin += kSlice) {
    const int64_t size = std::min(kSlice, from.numel() - begin);
    to.narrow(0, begin, size).copy_(from.narrow(0, begin, size));
  }
  return result;
}

}  // namespace

Llama Llama::load(const std::filesystem::path& folder, at::ScalarType dtype, at::Device device) {
  const ModelConfig config = read_model_config(folder);
  TensorMap weights = load_sharded_safetensors(folder);
  try {
    for (auto& [name, tensor] : weights) {
      if (at::isFloatingType(tensor.scalar_type())) tensor = converted(tensor, dtype, device);
    }
    return Llama(config, std::move(weights));
  } catch (const Error& error) {
    const bool single = std::filesystem::exists(folder / "model.safetensors");
    throw Error((folder / (single ? "model.safetensors" : "model.safetensors.index.json")).string() + ": " +
                error.what());
  }
}

Llama Llama::without_values(const ModelConfig& config, at::ScalarType dtype) {
  TensorMap weights;
  const auto options = at::TensorOptions().dtype(dtype).device(at::kMeta);
  for (const auto& [name, shape] : weight_shapes(config)) weights[name] = at::empty(shape, options);
  return Llama(config, std::move(weights));
}

Llama::Llama(ModelConfig config, TensorMap weights)
    : config_(std::move(config)),
      weights_(config_, std::move(weights)),
      rope_frequencies_(rope_frequencies(config_.rope, config_.head_dim).to(device())) {}

at::Device Llama::device() const { return weights_.embedding().device(); }

at::ScalarType Llama::dtype() const { return weights_.embedding().scalar_type(); }

at::Tensor Llama::logits(const at::Tensor& hidden, bool independent_rows) const {
  return row_functions(hidden, independent_rows).linear(hidden, head_weight(), {});
}

at::Tensor Llama::forward(const at::Tensor& tokens, const at::Tensor& positions,
                          const std::shared_ptr<Attention>& attention, bool inputs_only) const {
  if (tokens.dim() != 1 || tokens.scalar_type() != at::kLong || tokens.device() != device()) {
    throw Error("tokens must be one row of int64 on " + device().str() + ", found " + std::to_string(tokens.dim()) +
                " dimension(s) of " + c10::toString(tokens.scalar_type()) + " on " + tokens.device().str() +
                "; move them to the model's device");
  }
  if (positions.sizes() != tokens.sizes() || positions.scalar_type() != at::kFloat || positions.device() != device()) {
    throw Error("positions must be float32 of the tokens' shape on " + device().str() + ", found " +
                c10::toString(positions.scalar_type()) + " of another shape or on " + positions.device().str() +
                "; make both by PackedTokens");
  }
  if (tokens.is_cpu()) check_tokens(tokens, config_.vocab_size);
  const RowFunctions& functions = row_functions(weights_.embedding(), attention->independent_rows());
  const auto context = std::make_shared<const LayerContext>(
      LayerContext{&functions, functions.rope_table(rope_frequencies_, positions, dtype()), config_.head_dim,
                   config_.rms_norm_eps, attention});
  const bool recompute = inputs_only && c10::GradMode::is_enabled();
  at::Tensor x = at::embedding(weights_.embedding(), tokens);
  for (int64_t l = 0; l < config_.layers; ++l) {
    const LayerWeights& layer = weights_.layer(l);
    x = recompute ? layer_forward_recomputed(context, l, layer, x) : layer_forward(*context, l, layer, x);
  }
  return functions.rms_norm(x, weights_.final_norm(), config_.rms_norm_eps);
}

at::Tensor Llama::forward(const PackedTokens& input, const HeadMask& mask, const RecomputePolicy& policy) const {
  const bool recompute = policy.inputs_only && c10::GradMode::is_enabled();
  const int64_t kept = recompute ? policy.attention_results : 0;
  return forward(input.tokens, input.positions, std::make_shared<PackedAttention>(config_, input, mask, kept),
                 policy.inputs_only);
}

void check_tokens(const at::Tensor& tokens, int64_t vocab_size) {
  const auto* const ids = tokens.const_data_ptr<int64_t>();
  const int64_t count = tokens.numel();
  const auto* const outside = std::find_if(ids, ids + count, [&](int64_t id) { return id < 0 || id >= vocab_size; });
  if (outside == ids + count) return;
  throw Error("token " + std::to_string(*outside) + " at position " + std::to_string(outside - ids) +
              " is outside the model's vocabulary of " + std::to_string(vocab_size) +
              "; was the text prepared with another model's tokenizer?");
}

}  // namespace prulong
