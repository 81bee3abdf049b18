// SPDX-License-Identifier: MIT
#include "model/llama_weights.h"

#include <ATen/ops/equal.h>

#include <set>
#include <string>
#include <vector>

#include "model/error.h"

namespace prulong {
namespace {

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";

std::string text(at::IntArrayRef shape) {
  std::string result;
  for (const int64_t size : shape) result += (result.empty() ? "" : ", ") + std::to_string(size);
  return "[" + result + "]";
}

void check_tensor(const TensorMap& weights, const std::string& name, const std::vector<int64_t>& shape) {
  const auto found = weights.find(name);
  if (found == weights.end()) throw Error("tensor \"" + name + "\" is missing, expected " + text(shape));
  const at::Tensor& tensor = found->second;
  if (tensor.sizes() != at::IntArrayRef(shape)) {
    throw Error("tensor \"" + name + "\" has shape " + text(tensor.sizes()) + ", config.json asks for " + text(shape));
  }
  const at::Tensor& first = weights.at(kEmbedding);
  if (!at::isFloatingType(tensor.scalar_type()) || tensor.scalar_type() != first.scalar_type() ||
      tensor.device() != first.device()) {
    throw Error("tensor \"" + name + "\" is " + c10::toString(tensor.scalar_type()) + " on " + tensor.device().str() +
                ", expected the floating dtype and device of " + kEmbedding + ", " +
                c10::toString(first.scalar_type()) + " on " + first.device().str());
  }
}

void drop_needless(const ModelConfig& config, TensorMap& weights) {
  std::erase_if(weights, [](const auto& item) { return item.first.ends_with("rotary_emb.inv_freq"); });
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

void check_llama_weights(const ModelConfig& config, TensorMap& weights) {
  const int64_t hidden = config.hidden_size, mlp = config.intermediate_size;
  const int64_t q_size = config.query_heads * config.head_dim, kv_size = config.kv_heads * config.head_dim;
  std::set<std::string> expected;
  const auto expect = [&](const std::string& name, const std::vector<int64_t>& shape) {
    check_tensor(weights, name, shape);
    expected.insert(name);
  };
  expect(kEmbedding, {config.vocab_size, hidden});
  drop_needless(config, weights);
  expect("model.norm.weight", {hidden});
  if (!config.tied_embeddings) expect(kHead, {config.vocab_size, hidden});
  for (int64_t l = 0; l < config.layers; ++l) {
    const std::string layer = "model.layers." + std::to_string(l) + ".";
    expect(layer + "input_layernorm.weight", {hidden});
    expect(layer + "self_attn.q_proj.weight", {q_size, hidden});
    expect(layer + "self_attn.k_proj.weight", {kv_size, hidden});
    expect(layer + "self_attn.v_proj.weight", {kv_size, hidden});
    expect(layer + "self_attn.o_proj.weight", {hidden, q_size});
    expect(layer + "post_attention_layernorm.weight", {hidden});
    expect(layer + "mlp.gate_proj.weight", {mlp, hidden});
    expect(layer + "mlp.up_proj.weight", {mlp, hidden});
    expect(layer + "mlp.down_proj.weight", {hidden, mlp});
  }
  for (const auto& [name, tensor] : weights) {
    if (!expected.contains(name)) {
      throw Error("tensor \"" + name + "\" " + text(tensor.sizes()) + " has no place in a " + config.model_type +
                  " of " + std::to_string(config.layers) + " layers" +
                  (config.tied_embeddings ? " with tied embeddings" : ""));
    }
  }
}

}  // namespace prulong
