// SPDX-License-Identifier: MIT
// Models to measure; random weights exist on the device alone.
#pragma once

#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>

#include <filesystem>
#include <string>

#include "model/llama.h"
#include "model/weights.h"

namespace prulong::bench {

/// Llama-3.1-8B's shape, or a small one of the same kind.
inline ModelConfig make_config(const std::string& model, int64_t layers) {
  ModelConfig config;
  config.model_type = "llama";
  const bool big = model == "llama-3.1-8b";
  config.vocab_size = big ? 128256 : 512;
  config.hidden_size = big ? 4096 : 256;
  config.intermediate_size = big ? 14336 : 512;
  config.layers = layers > 0 ? layers : big ? 32 : 2;
  config.query_heads = big ? 32 : 8;
  config.kv_heads = big ? 8 : 2;
  config.head_dim = big ? 128 : 32;
  config.rms_norm_eps = 1e-5;
  config.max_positions = 131072;
  config.rope.theta = 500000.0;
  return config;
}

inline TensorMap make_weights(const ModelConfig& config, at::ScalarType dtype, at::Device device) {
  const auto options = at::TensorOptions().dtype(dtype).device(device);
  TensorMap weights;
  for (const auto& [name, shape] : weight_shapes(config)) {
    weights[name] = shape.size() == 1 ? at::ones(shape, options) : at::randn(shape, options).mul_(0.02);
  }
  return weights;
}

/// `name`: llama-3.1-8b or small, with random weights, or a Hugging Face folder.
inline Llama make_model(const std::string& name, int64_t layers, at::ScalarType dtype, at::Device device) {
  if (std::filesystem::is_directory(name)) return Llama::load(name, dtype, device);
  const ModelConfig config = make_config(name, layers);
  return {config, make_weights(config, dtype, device)};
}

}  // namespace prulong::bench
