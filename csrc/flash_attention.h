// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <tuple>

#include "csrc/blocked_attention.h"

namespace prulong {

/// Causal attention of the global branch through PyTorch's flash attention, for packed documents on CUDA. float16 and
/// bfloat16 only. Gradients are reproducible only under torch.use_deterministic_algorithms.
class FlashAttention {
 public:
  /// Can the library compute these tensors? (dtype, head_dim a multiple of 8 up to 256, compute capability >= 8.0,
  /// at least one token)
  static bool supports(const at::Tensor& q);

  /// Empty documents are left out, so the library never sees them. `device`: of the tensors to come.
  FlashAttention(const AttentionSpec& spec, at::Device device);

  /// q [Tq, Hq, D], k and v [Tk, Hkv, D]: out [Tq, Hq, D] and log-sum-exp [Hq, Tq] float32. Queries are aligned with
  /// the last keys of their document.
  std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) const;

  /// dq, dk, dv in the inputs' dtype; out and lse as forward returned them.
  std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& dout, const at::Tensor& q,
                                                          const at::Tensor& k, const at::Tensor& v,
                                                          const at::Tensor& out, const at::Tensor& lse) const;

 private:
  at::Tensor cu_seqlens_q_, cu_seqlens_k_;
  int64_t max_q_, max_k_;
  double scale_;
};

}  // namespace prulong
