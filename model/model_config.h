// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "model/pattern.h"

namespace prulong {

/// Frequencies of rotary positions.
struct RopeConfig {
  enum class Kind { kDefault, kLinear, kLlama3 };
  Kind kind = Kind::kDefault;
  double theta = 10000.0;
  double factor = 1.0;                    ///< linear and llama3
  double low_freq_factor = 1.0;           ///< llama3
  double high_freq_factor = 4.0;          ///< llama3
  int64_t original_max_positions = 8192;  ///< llama3
};

/// A Llama-like model, as its config.json says it.
struct ModelConfig {
  std::string model_type;  ///< "llama", "mistral", "qwen2" or "qwen3"
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t layers = 0;
  int64_t query_heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;  ///< not always hidden_size / query_heads
  double rms_norm_eps = 1e-6;
  bool qkv_biases = false;  ///< q, k and v add a bias after their projection
  bool qk_norms = false;    ///< every head of q and k is normalised before RoPE
  bool tied_embeddings = false;
  int64_t max_positions = 0;
  RopeConfig rope;

  ModelShape shape() const { return {model_type, layers, kv_heads, query_heads, head_dim}; }
};

/// Reads `folder`/config.json as transformers 4.x or 5.x write it (rope_theta and rope_scaling, or rope_parameters).
/// Anything that would change the mathematics and is not supported is refused by name: model types, RoPE kinds,
/// activation, biases other than the family's, sliding windows, quantised weights, head counts that do not divide.
/// @throws Error naming the file, the key, the value and what is supported.
ModelConfig read_model_config(const std::filesystem::path& folder);

}  // namespace prulong
