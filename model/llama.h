// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <vector>

#include "model/llama_layer.h"
#include "model/model_config.h"
#include "model/pattern.h"
#include "model/safetensors.h"

namespace prulong {

/// Token sequence of several documents, each attending only to itself.
struct PackedTokens {
  at::Tensor tokens;      ///< [T] int64, model's device
  at::Tensor cu_seqlens;  ///< [docs + 1] int32, model's device, 0 .. T
  int64_t max_seqlen = 0;

  /// One document.
  static PackedTokens single(const at::Tensor& tokens);
};

/// Which keys each KV head sees.
struct HeadRoles {
  /// [layers, kv_heads] on the model's device. float32 in [0, 1]: gates, mixed by gated_attention and differentiable.
  /// bool: 1 = global, by masked_attention (no gradients). Undefined: every head global (gated_attention with gate 1).
  at::Tensor heads;
  int64_t sink = 0;
  int64_t window = 1;

  /// Roles of a pattern, after Pattern::check_fits.
  static HeadRoles from_pattern(const Pattern& pattern, const ModelConfig& config, at::Device device);
};

/// What a forward pass keeps for its backward pass.
struct Keeping {
  bool inputs_only = false;       ///< only each layer's input; the layer is computed again
  int64_t attention_results = 0;  ///< then also gated attention's results, of so many layers
};

/// A pretrained Llama-like decoder with packed documents and head roles. Weights are plain tensors, frozen (no
/// requires_grad) unless set_trainable(true); gradients of frozen weights are neither computed nor stored.
class Llama {
 public:
  /// Loads a Hugging Face folder (config.json, *.safetensors). On the CPU, weights whose file dtype is `dtype` alias
  /// the memory-mapped file.
  /// @throws Error naming file and tensor: missing, unexpected, wrong shape or dtype.
  static Llama load(const std::filesystem::path& folder, at::ScalarType dtype, at::Device device);

  /// A model of the right shapes on torch's meta device, for counting: its weights have no values and take no memory.
  static Llama without_values(const ModelConfig& config, at::ScalarType dtype);

  /// Builds the model from weights in Hugging Face names ("model.layers.0.self_attn.q_proj.weight"), all of one
  /// floating dtype and device.
  /// A lm_head.weight beside tied embeddings must equal the embedding; rotary_emb.inv_freq buffers are ignored.
  /// @throws Error naming the tensor that is missing, unexpected or of the wrong shape, dtype or device.
  Llama(ModelConfig config, TensorMap weights);

  const ModelConfig& config() const { return config_; }
  at::Device device() const;
  at::ScalarType dtype() const;

  /// Hidden states after the final norm, [T, hidden_size] in the model's dtype. RoPE positions count from each
  /// document's start. Values and gradients do not depend on `keeping`, not by a bit where the operators are
  /// deterministic. On a GPU the checks wait for it once or twice a call.
  /// @throws Error if a token id is outside the vocabulary (naming id and position), if cu_seqlens does not run from 0
  ///         to T, or if the roles' shape, dtype or device does not fit.
  at::Tensor forward(const PackedTokens& input, const HeadRoles& roles, const Keeping& keeping = {}) const;

  /// [T, vocab_size] logits of hidden states. For a few rows; training uses next_token_loss, which never holds all of
  /// them.
  at::Tensor logits(const at::Tensor& hidden) const;

  /// lm_head.weight, or the embedding when tied: [vocab_size, hidden_size].
  const at::Tensor& head_weight() const;

  /// Every weight by its Hugging Face name (a tied head appears once, as the embedding), for training and saving.
  const TensorMap& weights() const { return weights_; }

  /// Makes all weights leaves that require gradients (copied out of a read-only mapping), or frozen again.
  void set_trainable(bool trainable);

 private:
  void bind_layers();

  ModelConfig config_;
  TensorMap weights_;
  std::vector<LayerWeights> layers_;  // handles of weights_, by layer
  at::Tensor rope_frequencies_;       // on the model's device
};

/// Sum over rows of the cross entropy (nats, scalar; float32, float64 for float64 inputs) of `hidden` [T, hidden_size]
/// against `labels` [T] int64, -100 = ignored, through `head` [vocab_size, hidden_size]. Logits exist for `chunk` rows
/// with labels at a time; the gradients are computed during the forward pass. Differentiable in hidden, and in head
/// when it requires a gradient.
/// @throws Error if shapes or dtypes do not fit, chunk < 1, or a label is neither -100 nor in the vocabulary.
at::Tensor next_token_loss(const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& labels, int64_t chunk);

/// The most likely next token of every row of `hidden` [T, hidden_size], [T] int64, `chunk` rows of logits at a time.
/// @throws Error if shapes or dtypes do not fit, or chunk < 1.
at::Tensor greedy_tokens(const at::Tensor& hidden, const at::Tensor& head, int64_t chunk);

}  // namespace prulong
