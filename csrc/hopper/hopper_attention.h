// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <tuple>

#include "csrc/attention_spec.h"
#include "csrc/ops/gated_attention.h"

/// Attention by our own kernels for Hopper GPUs (csrc/hopper). Nothing here waits for the device, so what lies on it
/// is not checked: bounds that do not rise from 0 to the number of tokens, or a document with more queries than keys,
/// give outputs, log-sum-exps and gradients of NaN; so does, in its heads, a gate outside [0, 1]. Calls can be captured
/// in a CUDA graph.
///
/// Tensors as in the operators' schemas (library.cpp), already checked for shape, dtype and device.
namespace prulong::hopper {

/// Shall the kernels compute this? They can on compute capability 9.0, for float16 or bfloat16, head_dim 64 or 128,
/// 0 < scale <= 128, at least one token, and sizes within the limits of csrc/hopper/address.h. The environment
/// variable PRULONG_ATTENTION=sdpa leaves them out, to measure or to doubt them.
bool supports(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cu_seqlens, double scale);

/// gated_attention's forward half. delta and the log-sum-exp of a branch that a head does not compute are unspecified.
GatedResults gated_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& gate,
                           const at::Tensor& cu_seqlens, Locality locality, double scale);

/// Should gated_backward compute these gradients (order q, k, v, gate)? Not the gate's alone, which need no attention.
bool supports_backward(const std::array<bool, 4>& needs);

/// dq, dk, dv in the inputs' dtype and dgate float32. dq has the same bits on every run only under
/// torch.use_deterministic_algorithms.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> gated_backward(
    const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& gate,
    const GatedResults& results, const at::Tensor& cu_seqlens, Locality locality, double scale);

/// out [Tq, Hq, D] and log-sum-exp [Hq, Tq] float32.
std::tuple<at::Tensor, at::Tensor> masked_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                  const at::Tensor& is_global, const at::Tensor& cu_seqlens_q,
                                                  const at::Tensor& cu_seqlens_k, Locality locality, double scale);

}  // namespace prulong::hopper
