// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "csrc/blocked_attention.h"

namespace prulong {

/// The tensors of gated_attention's forward half, as in its schema; out, delta and the log-sum-exps exist already.
struct GatedTensors {
  at::Tensor q, k, v, gate;
  at::Tensor out, delta, lse_global, lse_local;
};

/// Gradients to fill; undefined ones are not needed. dq in q's dtype; dk, dv float32 and dgate float64, all zero.
struct GatedGradients {
  at::Tensor dq, dk, dv, dgate;
};

/// Gated attention on CUDA for tensors that FlashAttention supports: the global branch by the library, the local one by
/// blocked attention, mixed by our kernel.
void gated_flash_forward(const AttentionSpec& spec, const std::vector<HeadKind>& kinds, const GatedTensors& tensors);
void gated_flash_backward(const AttentionSpec& spec, const std::vector<HeadKind>& kinds, const GatedTensors& tensors,
                          const at::Tensor& dout, const GatedGradients& gradients);

}  // namespace prulong
