// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model/model_config.h"
#include "model/safetensors.h"

namespace prulong {

/// Weights of one decoder layer: norms [hidden], q [Hq * D, hidden], k and v [Hkv * D, hidden], o [hidden, Hq * D],
/// gate and up [mlp, hidden], down [hidden, mlp].
struct LayerWeights {
  at::Tensor input_norm, q, k, v, o, post_norm, gate, up, down;
  at::Tensor q_bias, k_bias, v_bias;  ///< [Hq * D], [Hkv * D], [Hkv * D]; undefined where the model has none
  at::Tensor q_norm, k_norm;          ///< [D], over each head; undefined where the model has none
};

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

/// Where a model's weights are: here, whole, in memory. Layers and programs hold handles and ask for them when they
/// run.
class Weights {
 public:
  /// Takes weights by their Hugging Face names ("model.layers.0.self_attn.q_proj.weight"), all of one floating dtype
  /// and device. As transformers does, it takes names without "model." too, and a lm_head.weight for tied embeddings,
  /// and drops what the model does not need: rotary_emb.inv_freq buffers, a lm_head.weight that repeats tied
  /// embeddings, and tensors of other parts (names that begin with neither "model." nor "lm_head.").
  /// @throws Error naming the tensor that is missing, unexpected or of another shape, dtype or device.
  Weights(const ModelConfig& config, TensorMap tensors);

  const LayerWeights& layer(int64_t index) const { return layers_.at(static_cast<size_t>(index)); }
  const at::Tensor& embedding() const;   ///< [vocab_size, hidden_size]
  const at::Tensor& final_norm() const;  ///< [hidden_size]
  const at::Tensor& head() const;        ///< [vocab_size, hidden_size]; the embedding when tied

  /// Every weight by its name (a tied head appears once, as the embedding): what optimizers and checkpoints see.
  const TensorMap& shards() const { return tensors_; }

  /// Makes all weights leaves that require gradients (copied out of a read-only mapping), or frozen again.
  void set_trainable(bool trainable);

 private:
  void bind();

  ModelConfig config_;
  TensorMap tensors_;
  std::vector<LayerWeights> layers_;  // handles of tensors_, by layer
};

}  // namespace prulong
