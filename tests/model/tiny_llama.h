// SPDX-License-Identifier: MIT
// Small models for tests.
#pragma once

#include <ATen/Context.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>

#include <string>
#include <utility>

#include "model/llama.h"
#include "model/weights.h"

namespace prulong::test {

/// 2 layers, 4 query and 2 KV heads of 6, hidden size 20 (not heads * head_dim).
inline ModelConfig tiny_config(bool tied = false) {
  ModelConfig config;
  config.model_type = "llama";
  config.vocab_size = 37;
  config.hidden_size = 20;
  config.intermediate_size = 28;
  config.layers = 2;
  config.query_heads = 4;
  config.kv_heads = 2;
  config.head_dim = 6;
  config.rms_norm_eps = 1e-5;
  config.tied_embeddings = tied;
  config.max_positions = 64;
  return config;
}

/// The same with all that some families add to a layer: biases of q, k and v, norms of q's and k's heads.
inline ModelConfig extended_config() {
  ModelConfig config = tiny_config();
  config.qkv_biases = config.qk_norms = true;
  return config;
}

/// Random weights of the config's shapes.
inline TensorMap tiny_weights(const ModelConfig& config, at::ScalarType dtype, uint64_t seed = 1) {
  at::manual_seed(seed);
  TensorMap weights;
  for (const auto& [name, shape] : weight_shapes(config)) {
    const at::Tensor noise = at::randn(shape, at::TensorOptions().dtype(at::kDouble));
    weights[name] = (shape.size() == 1 ? noise.mul(0.2).add(1.0) : noise.mul(0.3)).to(dtype);
  }
  return weights;
}

inline Llama tiny_llama(at::ScalarType dtype, bool tied = false, uint64_t seed = 1) {
  const ModelConfig config = tiny_config(tied);
  return Llama(config, tiny_weights(config, dtype, seed));
}

inline Llama extended_llama(at::ScalarType dtype) {
  return Llama(extended_config(), tiny_weights(extended_config(), dtype));
}

/// The config.json of tiny_config.
inline std::string tiny_config_json(bool tied = false) {
  return std::string(R"({"model_type": "llama", "vocab_size": 37, "hidden_size": 20, "intermediate_size": 28,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64, "torch_dtype": "bfloat16", "tie_word_embeddings": )") +
         (tied ? "true}" : "false}");
}

inline at::Tensor random_tokens(int64_t count, int64_t vocab_size) {
  return at::randint(vocab_size, {count}, at::TensorOptions().dtype(at::kLong));
}

}  // namespace prulong::test
