// SPDX-License-Identifier: MIT
#include "model/weights.h"

#include <ATen/ops/equal.h>

#include <string>
#include <utility>
#include <vector>

#include "common/error.h"

namespace prulong {
namespace {

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kFinalNorm = "model.norm.weight";
constexpr const char* kHead = "lm_head.weight";
constexpr const char* kRemedy = "; config.json and weights must be of one model: download both again";

std::string text(at::IntArrayRef shape) {
  std::string result;
  for (const int64_t size : shape) result += (result.empty() ? "" : ", ") + std::to_string(size);
  return "[" + result + "]";
}

void check_tensor(const TensorMap& weights, const std::string& name, const std::vector<int64_t>& shape) {
  const auto found = weights.find(name);
  if (found == weights.end()) throw Error("tensor \"" + name + "\" is missing, expected " + text(shape) + kRemedy);
  const at::Tensor& tensor = found->second;
  if (tensor.sizes() != at::IntArrayRef(shape)) {
    throw Error("tensor \"" + name + "\" has shape " + text(tensor.sizes()) + ", config.json asks for " + text(shape) +
                kRemedy);
  }
  if (!at::isFloatingType(tensor.scalar_type())) {
    throw Error("tensor \"" + name + "\" has dtype " + c10::toString(tensor.scalar_type()) +
                ", expected floating-point weights; save the model in bfloat16 or float32");
  }
  const at::Tensor& first = weights.at(kEmbedding);
  if (tensor.scalar_type() != first.scalar_type() || tensor.device() != first.device()) {
    throw Error("tensor \"" + name + "\" is " + c10::toString(tensor.scalar_type()) + " on " + tensor.device().str() +
                ", expected the floating dtype and device of " + kEmbedding + ", " +
                c10::toString(first.scalar_type()) + " on " + first.device().str() + "; save the model in one dtype");
  }
}

void rename(TensorMap& weights, const std::string& from, const std::string& to) {
  auto node = weights.extract(from);
  node.key() = to;
  if (!weights.insert(std::move(node)).inserted) {
    throw Error("tensors \"" + from + "\" and \"" + to + "\" are one weight of the model; keep one of them");
  }
}

/// Takes tensors for what transformers takes them: a decoder that was saved without its head has names without
/// "model.", a tied matrix may be stored as the head alone, and parts beside decoder and head are not read.
void settle_names(const ModelConfig& config, const std::map<std::string, std::vector<int64_t>>& shapes,
                  TensorMap& weights) {
  const std::string decoder = "model.", head = "lm_head.";
  std::vector<std::string> bare;
  for (const auto& [name, tensor] : weights) {
    if (!shapes.contains(name) && shapes.contains(decoder + name)) bare.push_back(name);
  }
  for (const std::string& name : bare) rename(weights, name, decoder + name);
  if (config.tied_embeddings && weights.contains(kHead) && !weights.contains(kEmbedding)) {
    rename(weights, kHead, kEmbedding);
  }
  std::erase_if(weights, [&](const auto& item) {
    const std::string& name = item.first;
    return name.ends_with("rotary_emb.inv_freq") || !(name.starts_with(decoder) || name.starts_with(head));
  });
}

/// @param weights  with an embedding.
void drop_repeated_head(const ModelConfig& config, TensorMap& weights) {
  const auto head = weights.find(kHead);
  if (!config.tied_embeddings || head == weights.end()) return;
  const at::Tensor& embedding = weights.at(kEmbedding);
  if (head->second.sizes() != embedding.sizes() || head->second.device() != embedding.device() ||
      !at::equal(head->second, embedding)) {
    throw Error(
        "config.json ties the embeddings, but tensor \"lm_head.weight\" differs from \"model.embed_tokens.weight\"; "
        "set \"tie_word_embeddings\" to false if the head is meant to be its own");
  }
  weights.erase(head);
}

}  // namespace

std::vector<LayerTensor> layer_tensors(const ModelConfig& config) {
  const int64_t hidden = config.hidden_size, mlp = config.intermediate_size, head = config.head_dim;
  const int64_t query = config.query_heads * head, kv = config.kv_heads * head;
  using W = LayerWeights;
  std::vector<LayerTensor> tensors{{"input_layernorm.weight", &W::input_norm, {hidden}},
                                   {"self_attn.q_proj.weight", &W::q, {query, hidden}},
                                   {"self_attn.k_proj.weight", &W::k, {kv, hidden}},
                                   {"self_attn.v_proj.weight", &W::v, {kv, hidden}},
                                   {"self_attn.o_proj.weight", &W::o, {hidden, query}},
                                   {"post_attention_layernorm.weight", &W::post_norm, {hidden}},
                                   {"mlp.gate_proj.weight", &W::gate, {mlp, hidden}},
                                   {"mlp.up_proj.weight", &W::up, {mlp, hidden}},
                                   {"mlp.down_proj.weight", &W::down, {hidden, mlp}}};
  if (config.qkv_biases) {
    tensors.push_back({"self_attn.q_proj.bias", &W::q_bias, {query}});
    tensors.push_back({"self_attn.k_proj.bias", &W::k_bias, {kv}});
    tensors.push_back({"self_attn.v_proj.bias", &W::v_bias, {kv}});
  }
  if (config.qk_norms) {
    tensors.push_back({"self_attn.q_norm.weight", &W::q_norm, {head}});
    tensors.push_back({"self_attn.k_norm.weight", &W::k_norm, {head}});
  }
  return tensors;
}

std::string layer_prefix(int64_t layer) { return "model.layers." + std::to_string(layer) + "."; }

std::map<std::string, std::vector<int64_t>> weight_shapes(const ModelConfig& config) {
  std::map<std::string, std::vector<int64_t>> shapes{{kEmbedding, {config.vocab_size, config.hidden_size}},
                                                     {kFinalNorm, {config.hidden_size}}};
  if (!config.tied_embeddings) shapes[kHead] = shapes[kEmbedding];
  const std::vector<LayerTensor> tensors = layer_tensors(config);
  for (int64_t l = 0; l < config.layers; ++l) {
    for (const LayerTensor& tensor : tensors) shapes[layer_prefix(l) + tensor.name] = tensor.shape;
  }
  return shapes;
}

Weights::Weights(const ModelConfig& config, TensorMap tensors) : config_(config), tensors_(std::move(tensors)) {
  TensorMap& weights = tensors_;
  const auto shapes = weight_shapes(config);
  settle_names(config, shapes, weights);
  check_tensor(weights, kEmbedding, shapes.at(kEmbedding));
  drop_repeated_head(config, weights);
  for (const auto& [name, shape] : shapes) check_tensor(weights, name, shape);
  for (const auto& [name, tensor] : weights) {
    if (!shapes.contains(name)) {
      throw Error("tensor \"" + name + "\" " + text(tensor.sizes()) + " has no place in a " + config.model_type +
                  " of " + std::to_string(config.layers) + " layers" +
                  (config.tied_embeddings ? " with tied embeddings" : "") + kRemedy);
    }
  }
  bind();
}

void Weights::bind() {
  layers_.clear();
  const std::vector<LayerTensor> layer = layer_tensors(config_);
  for (int64_t l = 0; l < config_.layers; ++l) {
    LayerWeights& handles = layers_.emplace_back();
    for (const LayerTensor& tensor : layer) handles.*tensor.member = tensors_.at(layer_prefix(l) + tensor.name);
  }
}

const at::Tensor& Weights::embedding() const { return tensors_.at(kEmbedding); }
const at::Tensor& Weights::final_norm() const { return tensors_.at(kFinalNorm); }
const at::Tensor& Weights::head() const { return tensors_.at(config_.tied_embeddings ? kEmbedding : kHead); }

void Weights::set_trainable(bool trainable) {
  for (auto& [name, weight] : tensors_) {
    if (weight.requires_grad() == trainable) continue;
    // A copy, not the mapping: an optimizer would otherwise turn every page of the file into a private one, a page at a
    // time.
    weight = trainable ? weight.detach().clone().set_requires_grad(true) : weight.detach();
  }
  bind();
}

}  // namespace prulong
