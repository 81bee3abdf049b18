// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <tuple>

#include "csrc/attention_spec.h"
#include "csrc/ops/gated_attention.h"
#include "csrc/ops/masked_attention.h"

/// The operators tile by tile (blocked_jobs.h), on any device and for any dtype and head_dim. Deterministic.
///
/// Arguments as in the operators' headers, checked; the spec is theirs.
namespace prulong::blocked {

/// gated_attention's forward half. delta and the log-sum-exp of a branch that a head does not compute are 0.
GatedResults gated_forward(const AttentionSpec& spec, const GatedArguments& arguments);

/// Gradients that are needed (order q, k, v, gate).
GatedGradients gated_backward(const AttentionSpec& spec, const GatedArguments& arguments, const at::Tensor& dout,
                              const GatedResults& results, const std::array<bool, 4>& needs);

/// out [Tq, Hq, D] and log-sum-exp [Hq, Tq].
std::tuple<at::Tensor, at::Tensor> masked_forward(const AttentionSpec& spec, const MaskedArguments& arguments);

}  // namespace prulong::blocked
