// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "csrc/attention_spec.h"

namespace prulong {

/// H KV heads of one kind, with g query heads each. All tensors on one device; "compute type" is compute_type(q's
/// dtype).
struct ForwardJob {
  HeadKind kind;
  at::Tensor q;           // [Tq, H, g, D]
  at::Tensor k, v;        // [H, Tk, D], compute type
  at::Tensor gate;        // [H, 1, 1], compute type; kFractional only
  at::Tensor out;         // [Tq, H, g, D], q's dtype: written
  at::Tensor delta;       // like out, kFractional only: written with O_global - O_local
  at::Tensor lse_global;  // [H, g, Tq], compute type: written unless kLocal
  at::Tensor lse_local;   // [H, g, Tq], compute type: written unless kGlobal
};

/// Attention tile by tile, from ATen operators alone, so the same code runs on every device. Scratch memory is bounded,
/// whatever the lengths. Arithmetic in the compute type. Deterministic. Rows outside all documents are not written.
void blocked_forward(const AttentionSpec& spec, const std::vector<ForwardJob>& jobs);

/// As ForwardJob, for the gradients. Undefined outputs are not computed.
struct BackwardJob {
  HeadKind kind;
  at::Tensor dout, q;     // [Tq, H, g, D], any strides
  at::Tensor k, v;        // [H, Tk, D], compute type
  at::Tensor gate;        // [H, 1, 1], compute type; kFractional only
  at::Tensor out, delta;  // as the forward pass wrote them (delta: kFractional only)
  at::Tensor lse_global, lse_local;
  at::Tensor dq;     // [Tq, H, g, D], any floating type: written
  at::Tensor dk;     // [H, Tk, D], compute type: added to
  at::Tensor dv;     // [H, Tk, D], compute type: added to
  at::Tensor dgate;  // [H], float64: added to; kFractional only
};

/// Gradients with five matrix products per tile also for fractional heads: on local keys the mixed probability is
/// exp(s - lam_l), elsewhere exp(s - lam_c), with one pair (lam, D) per row and branch.
void blocked_backward(const AttentionSpec& spec, const std::vector<BackwardJob>& jobs);

}  // namespace prulong
