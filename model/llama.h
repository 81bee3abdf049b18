// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <memory>

#include "model/attention.h"
#include "model/model_config.h"
#include "model/packed_tokens.h"
#include "model/safetensors.h"
#include "model/weights.h"

namespace prulong {

/// What a forward pass keeps for its backward pass.
struct RecomputePolicy {
  bool inputs_only = false;       ///< only each layer's input; the layer is computed again
  int64_t attention_results = 0;  ///< then also gated attention's results, of so many layers (PackedAttention)
};

/// A pretrained Llama-like decoder. Weights are plain tensors, frozen (no
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

  /// Hidden states after the final norm, [T, hidden_size] in the model's dtype. Nothing is read back from a GPU: ids of
  /// tokens there are checked where batches are made (check_tokens), ids on the CPU here too.
  /// @param tokens     [T] int64, @param positions  [T] float32, both on the model's device.
  /// @param attention  how the pass attends; kept alive until its backward pass is over.
  /// @param inputs_only  keep only each layer's input for the backward pass and compute the layer again. Values and
  ///                   gradients do not depend on it, not by a bit where the operators are deterministic.
  /// @throws Error if shapes, dtypes or devices do not fit, or a token id on the CPU is outside the vocabulary.
  at::Tensor forward(const at::Tensor& tokens, const at::Tensor& positions, const std::shared_ptr<Attention>& attention,
                     bool inputs_only = false) const;

  /// The same over packed documents under a mask.
  at::Tensor forward(const PackedTokens& input, const HeadMask& mask, const RecomputePolicy& policy = {}) const;

  /// [T, vocab_size] logits of hidden states. For a few rows; training uses next_token_loss, which never holds all of
  /// them.
  /// @param independent_rows  as Attention::independent_rows.
  at::Tensor logits(const at::Tensor& hidden, bool independent_rows = false) const;

  /// lm_head.weight, or the embedding when tied: [vocab_size, hidden_size].
  const at::Tensor& head_weight() const { return weights_.head(); }

  /// Every weight by its Hugging Face name (a tied head appears once, as the embedding), for training and saving.
  const TensorMap& weights() const { return weights_.shards(); }

  /// Makes all weights leaves that require gradients (copied out of a read-only mapping), or frozen again.
  void set_trainable(bool trainable) { weights_.set_trainable(trainable); }

 private:
  ModelConfig config_;
  Weights weights_;
  at::Tensor rope_frequencies_;  // on the model's device
};

/// Refuses ids outside a vocabulary, naming id and position. @param tokens  [T] int64, on the CPU.
void check_tokens(const at::Tensor& tokens, int64_t vocab_size);

/// Sum over rows of the cross entropy (nats, scalar; float32, float64 for float64 inputs) of `hidden` [T, hidden_size]
/// against `labels` [T] int64, -100 = ignored, through `head` [vocab_size, hidden_size]. Logits exist for `chunk` rows
/// with labels at a time; the gradients are computed during the forward pass. Differentiable in hidden, and in head
/// when it requires a gradient.
/// @param known_rows  [n] int64, those that have a label, all of them in the vocabulary: then nothing is read from the
///                    device (Batch::label_rows); undefined: labels are checked and read.
/// @throws Error if shapes or dtypes do not fit, chunk < 1, or a label is neither -100 nor in the vocabulary.
at::Tensor next_token_loss(const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& labels, int64_t chunk,
                           const at::Tensor& known_rows = {});

/// The most likely next token of every row of `hidden` [T, hidden_size], [T] int64, `chunk` rows of logits at a time.
/// @throws Error if shapes or dtypes do not fit, or chunk < 1.
at::Tensor greedy_tokens(const at::Tensor& hidden, const at::Tensor& head, int64_t chunk);

}  // namespace prulong
