// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <tuple>
#include <vector>

#include "csrc/attention_spec.h"
#include "csrc/ops/gated_attention.h"

namespace prulong::sdpa {

/// Gated attention on CUDA for tensors that SdpaBranch supports: each branch by PyTorch's kernels for the heads that
/// compute it, mixed by ours. q [T, Hq, D], k and v [T, Hkv, D], gate [Hkv] float32 with the given kinds.
GatedResults gated_forward(const AttentionSpec& spec, const std::vector<HeadKind>& kinds, const at::Tensor& q,
                           const at::Tensor& k, const at::Tensor& v, const at::Tensor& gate);

/// dq, dk, dv in the inputs' dtype and dgate float32; undefined where not needed.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> gated_backward(
    const AttentionSpec& spec, const std::vector<HeadKind>& kinds, const at::Tensor& dout, const at::Tensor& q,
    const at::Tensor& k, const at::Tensor& v, const at::Tensor& gate, const GatedResults& results,
    const std::array<bool, 4>& needs);

}  // namespace prulong::sdpa
