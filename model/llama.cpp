// SPDX-License-Identifier: MIT
#include "model/llama.h"

#include <ATen/TensorIterator.h>
#include <ATen/ops/aminmax.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "common/error.h"
#include "model/layer_functions.h"
#include "model/llama_weights.h"
#include "model/rope.h"

namespace prulong {
namespace {

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kFinalNorm = "model.norm.weight";
constexpr const char* kHead = "lm_head.weight";

void check_tokens(const at::Tensor& tokens, int64_t vocab_size, at::Device device) {
  if (tokens.dim() != 1 || tokens.scalar_type() != at::kLong || tokens.device() != device) {
    throw Error("tokens must be one row of int64 on " + device.str() + ", found " + std::to_string(tokens.dim()) +
                " dimension(s) of " + c10::toString(tokens.scalar_type()) + " on " + tokens.device().str());
  }
  if (tokens.numel() == 0) return;
  const auto [smallest, largest] = at::aminmax(tokens);
  const at::Tensor bounds = at::stack({smallest, largest}).cpu();  // one wait for the GPU
  if (bounds[0].item<int64_t>() >= 0 && bounds[1].item<int64_t>() < vocab_size) return;
  const int64_t position = tokens.lt(0).logical_or_(tokens.ge(vocab_size)).nonzero()[0].item<int64_t>();
  throw Error("token " + std::to_string(tokens[position].item<int64_t>()) + " at position " + std::to_string(position) +
              " is outside the model's vocabulary of " + std::to_string(vocab_size) +
              "; was the text prepared with another model's tokenizer?");
}

/// Positions from each document's start, [T] float32 on `device`; checks the document boundaries on the way.
at::Tensor document_positions(const PackedTokens& input, at::Device device) {
  const at::Tensor& boundaries = input.cu_seqlens;
  const int64_t total = input.tokens.size(0);
  const auto refuse = [&](const std::string& found) {
    throw Error("cu_seqlens must be int32 on " + device.str() + " and rise from 0 to " + std::to_string(total) +
                " in steps of at most max_seqlen = " + std::to_string(input.max_seqlen) + ", found " + found);
  };
  if (!boundaries.defined() || boundaries.dim() != 1 || boundaries.size(0) < 2 ||
      boundaries.scalar_type() != at::kInt || boundaries.device() != device) {
    refuse("another shape, dtype or device");
  }
  const at::Tensor local = boundaries.cpu().contiguous();
  const auto* starts = local.const_data_ptr<int32_t>();
  const int64_t documents = local.size(0) - 1;
  if (starts[0] != 0 || starts[documents] != total) {
    refuse(std::to_string(starts[0]) + " and " + std::to_string(starts[documents]) + " at its ends");
  }
  at::Tensor positions = at::empty({total}, at::TensorOptions().dtype(at::kFloat));
  auto* position = positions.mutable_data_ptr<float>();
  for (int64_t d = 0; d < documents; ++d) {
    const int64_t length = int64_t{starts[d + 1]} - starts[d];
    if (length < 0 || length > input.max_seqlen || starts[d + 1] > total) {
      refuse("document " + std::to_string(d) + " from " + std::to_string(starts[d]) + " to " +
             std::to_string(starts[d + 1]));
    }
    for (int64_t i = 0; i < length; ++i) *position++ = static_cast<float>(i);
  }
  return positions.to(device);
}

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

/// One row of heads per layer, in the dtype that the attention operators expect.
std::vector<at::Tensor> head_rows(const HeadRoles& roles, const ModelConfig& config, at::ScalarType dtype,
                                  at::Device device) {
  const at::ScalarType gate_dtype = dtype == at::kDouble ? at::kDouble : at::kFloat;
  if (!roles.heads.defined()) {
    const at::Tensor all_global = at::ones({config.kv_heads}, at::TensorOptions().dtype(gate_dtype).device(device));
    return std::vector<at::Tensor>(static_cast<size_t>(config.layers), all_global);
  }
  const at::Tensor& heads = roles.heads;
  if (heads.sizes() != at::IntArrayRef({config.layers, config.kv_heads})) {
    std::string shape;
    for (const int64_t size : heads.sizes()) shape += (shape.empty() ? "" : ", ") + std::to_string(size);
    throw Error("head roles have shape [" + shape + "], the model has [" + std::to_string(config.layers) + ", " +
                std::to_string(config.kv_heads) + "] (layers, KV heads)");
  }
  const bool is_gate = heads.scalar_type() == at::kFloat || heads.scalar_type() == at::kDouble;
  if ((!is_gate && heads.scalar_type() != at::kBool) || heads.device() != device) {
    throw Error("head roles must be float32 or bool on " + device.str() + ", found " +
                c10::toString(heads.scalar_type()) + " on " + heads.device().str());
  }
  return (is_gate ? heads.to(gate_dtype) : heads).unbind(0);
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

}  // namespace

PackedTokens PackedTokens::single(const at::Tensor& tokens) {
  const auto options = at::TensorOptions().dtype(at::kInt);
  const at::Tensor ends = at::tensor({int64_t{0}, tokens.size(0)}, options);
  return {tokens, ends.to(tokens.device()), tokens.size(0)};
}

HeadRoles HeadRoles::from_pattern(const Pattern& pattern, const ModelConfig& config, at::Device device) {
  pattern.check_fits(config.shape());
  if (pattern.mask.size() != static_cast<size_t>(config.layers * config.kv_heads)) {
    throw Error("the pattern's mask has " + std::to_string(pattern.mask.size()) + " entries, the model has " +
                std::to_string(config.layers * config.kv_heads) + " KV heads");
  }
  at::Tensor heads = at::empty({config.layers, config.kv_heads}, at::TensorOptions().dtype(at::kBool));
  auto* head = heads.mutable_data_ptr<bool>();
  for (const uint8_t value : pattern.mask) *head++ = value != 0;
  return {heads.to(device), pattern.sink, pattern.window};
}

Llama Llama::load(const std::filesystem::path& folder, at::ScalarType dtype, at::Device device) {
  const ModelConfig config = read_model_config(folder);
  TensorMap weights = load_sharded_safetensors(folder);
  try {
    for (auto& [name, tensor] : weights) {
      if (!at::isFloatingType(tensor.scalar_type())) {
        throw Error("tensor \"" + name + "\" has dtype " + c10::toString(tensor.scalar_type()) +
                    ", expected floating-point weights; save the model in bfloat16 or float32");
      }
      tensor = converted(tensor, dtype, device);
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

Llama::Llama(ModelConfig config, TensorMap weights) : config_(std::move(config)), weights_(std::move(weights)) {
  check_llama_weights(config_, weights_);
  bind_layers();
  rope_frequencies_ = rope_frequencies(config_.rope, config_.head_dim).to(device());
}

void Llama::bind_layers() {
  layers_.clear();
  const std::vector<LayerTensor> tensors = layer_tensors(config_);
  for (int64_t l = 0; l < config_.layers; ++l) {
    LayerWeights& layer = layers_.emplace_back();
    for (const LayerTensor& tensor : tensors) layer.*tensor.member = weights_.at(layer_prefix(l) + tensor.name);
  }
}

at::Device Llama::device() const { return weights_.at(kEmbedding).device(); }

at::ScalarType Llama::dtype() const { return weights_.at(kEmbedding).scalar_type(); }

const at::Tensor& Llama::head_weight() const { return weights_.at(config_.tied_embeddings ? kEmbedding : kHead); }

at::Tensor Llama::logits(const at::Tensor& hidden) const { return project(hidden, head_weight()); }

at::Tensor Llama::forward(const PackedTokens& input, const HeadRoles& roles, const Keeping& keeping) const {
  check_tokens(input.tokens, config_.vocab_size, device());
  const at::Tensor positions = document_positions(input, device());
  const std::vector<at::Tensor> heads = head_rows(roles, config_, dtype(), device());
  const auto context = std::make_shared<const LayerContext>(
      LayerContext{rope_table(rope_frequencies_, positions, dtype()), input.cu_seqlens, input.max_seqlen, roles.sink,
                   roles.window, config_.head_dim, config_.rms_norm_eps});
  const bool inputs_only = keeping.inputs_only && c10::GradMode::is_enabled();
  const std::vector<at::Tensor> fractional = fractional_heads(heads, inputs_only ? keeping.attention_results : 0);
  at::Tensor x = at::embedding(weights_.at(kEmbedding), input.tokens);
  for (size_t l = 0; l < layers_.size(); ++l) {
    x = inputs_only ? layer_forward_recomputed(context, layers_[l], x, heads[l], fractional[l])
                    : layer_forward(*context, layers_[l], x, heads[l]);
  }
  return rms_norm(x, weights_.at(kFinalNorm), config_.rms_norm_eps);
}

void Llama::set_trainable(bool trainable) {
  for (auto& [name, weight] : weights_) {
    if (weight.requires_grad() == trainable) continue;
    // A copy, not the mapping: an optimizer would otherwise turn every page of the file into a private one, a page at a
    // time.
    weight = trainable ? weight.detach().clone().set_requires_grad(true) : weight.detach();
  }
  bind_layers();
}

}  // namespace prulong
