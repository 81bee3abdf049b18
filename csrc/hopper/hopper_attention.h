// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "csrc/ops/gated_attention.h"
#include "csrc/ops/masked_attention.h"

/// Attention by our own kernels for Hopper GPUs (csrc/hopper). Nothing here waits for the device, so what lies on it
/// is not checked here (run_on() in ops/backend.h does on request): bounds that do not rise from 0 to the number of
/// tokens, or a document with more queries than keys, give outputs, log-sum-exps and gradients of NaN; so does, in its
/// heads, a gate outside [0, 1]. Calls can be captured in a CUDA graph.
///
/// Arguments as in the operators' headers, already checked for shape, dtype and device.
namespace prulong::hopper {

/// Can the kernels compute this? On compute capability 9.0, for float16 or bfloat16, head_dim 64 or 128,
/// 0 < scale <= 128, at least one token, and sizes within the limits of csrc/hopper/address.h.
bool supports(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cu_seqlens, double scale);

/// gated_attention's forward half. delta and the log-sum-exp of a branch that a head does not compute are unspecified.
GatedResults gated_forward(const GatedArguments& arguments);

/// All gradients. dq has the same bits on every run only under torch.use_deterministic_algorithms.
GatedGradients gated_backward(const GatedArguments& arguments, const at::Tensor& dout, const GatedResults& results);

/// out [Tq, Hq, D] and log-sum-exp [Hq, Tq] float32.
std::tuple<at::Tensor, at::Tensor> masked_forward(const MaskedArguments& arguments);

}  // namespace prulong::hopper
