// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/model_config.h"
#include "model/packed_tokens.h"
#include "model/pattern.h"
#include "model/recompute.h"

namespace prulong {

/// How one forward pass attends: which keys there are and who sees them. One object per pass.
class Attention {
 public:
  virtual ~Attention() = default;

  /// Attention of one layer.
  /// @param q     [T, Hq, D], @param k, v  [T, Hkv, D]: of the pass's tokens, turned by their positions.
  /// @param state  what a layer that is computed again finds of its first run.
  /// @returns     [T, Hq, D], q's dtype.
  virtual at::Tensor attend(int64_t layer, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            RecomputeState& state) = 0;

  /// What attend differentiates beside q, k and v, [Hkv]: a layer's gates; undefined where there are none. In a layer
  /// that is computed again `state.gates` stands for it.
  virtual at::Tensor gates(int64_t layer) const = 0;

  /// Whether each row's results shall not depend on the other rows of the pass, bit for bit: on the CPU in float32
  /// without gradients; elsewhere as good as the device gives.
  virtual bool independent_rows() const { return false; }
};

/// Which keys each KV head sees.
struct HeadMask {
  /// [layers, kv_heads] on the model's device. float32 in [0, 1]: gates, mixed by gated_attention and differentiable.
  /// bool: 1 = global, by masked_attention (no gradients). Undefined: every head global (gated_attention with gate 1).
  at::Tensor heads;
  int64_t sink = 0;
  int64_t window = 1;

  /// A pattern's mask, after Pattern::check_fits.
  static HeadMask from_pattern(const Pattern& pattern, const ModelConfig& config, at::Device device);
};

/// Packed documents, each attending to itself under a mask: training and scoring.
class PackedAttention : public Attention {
 public:
  /// @param kept_results  layers that keep gated attention's results when they are computed again: the last so many.
  ///                      Their places of fractional gates are read here, which waits for a GPU once.
  /// @throws Error if the mask's shape or dtype does not fit the model, or its device is not the input's.
  PackedAttention(const ModelConfig& config, const PackedTokens& input, const HeadMask& mask, int64_t kept_results = 0);

  at::Tensor attend(int64_t layer, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                    RecomputeState& state) override;
  at::Tensor gates(int64_t layer) const override;

 private:
  at::Tensor cu_seqlens_;
  int64_t max_seqlen_;
  int64_t sink_, window_;
  std::vector<at::Tensor> heads_;       // by layer, in the dtype that the operators expect; undefined: global
  std::vector<at::Tensor> fractional_;  // by layer: heads whose gate is neither 0 nor 1; undefined: keeps no results
};

}  // namespace prulong
