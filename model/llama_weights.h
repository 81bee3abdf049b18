// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model/llama_layer.h"
#include "model/model_config.h"
#include "model/safetensors.h"

namespace prulong {

/// One tensor of a decoder layer, where it lies in a checkpoint and in memory.
struct LayerTensor {
  std::string name;  ///< within the layer: "self_attn.q_proj.weight"
  at::Tensor LayerWeights::*member;
  std::vector<int64_t> shape;
};

/// The tensors that each layer of such a model has.
std::vector<LayerTensor> layer_tensors(const ModelConfig& config);

/// "model.layers.3.", what precedes the names of layer 3.
std::string layer_prefix(int64_t layer);

/// Every tensor of such a model by its Hugging Face name, with its shape; a tied head is left out.
std::map<std::string, std::vector<int64_t>> weight_shapes(const ModelConfig& config);

/// Checks that `weights` are those of the model, in shape, dtype (one floating dtype) and device (one), and drops what
/// a model does not need: rotary_emb.inv_freq buffers, and a lm_head.weight that repeats tied embeddings.
/// @throws Error naming the tensor that is missing, unexpected or different.
void check_llama_weights(const ModelConfig& config, TensorMap& weights);

}  // namespace prulong
