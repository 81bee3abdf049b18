// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "csrc/attention_spec.h"
#include "csrc/sdpa/attention_parts.h"

namespace prulong {

/// One branch of gated attention by PyTorch's own CUDA kernels: cuDNN's for the global branch of one document where
/// PyTorch's switches allow it (torch.backends.cuda.enable_cudnn_sdp), else flash attention. float16 and bfloat16 only.
/// Gradients are reproducible only under torch.use_deterministic_algorithms.
///
/// The local branch is computed in parts (attention_parts.h) whose softmaxes are joined. Every part's gradients then
/// come from the joined output and log-sum-exp: P = exp(s - lse) and dS = P (dP - <dout, out>) hold for any subset of
/// the keys.
class SdpaBranch {
 public:
  /// Can PyTorch's kernels compute these tensors? (dtype, head_dim a multiple of 8 up to 256, or 192 where they have no
  /// larger backward pass, compute capability >= 8.0, at least one token, scale > 0: flash attention scales scores
  /// after hiding keys)
  static bool supports(const at::Tensor& q, double scale);

  /// @param local   the local branch, else the global one.
  /// @param device  of the tensors to come.
  SdpaBranch(const AttentionSpec& spec, bool local, at::Device device);

  /// q [Tq, Hq, D], k and v [Tk, Hkv, D]: out [Tq, Hq, D] and log-sum-exp [Hq, Tq] float32, contiguous. Queries are
  /// aligned with the last keys of their document. Inputs that 16-byte reads cannot address are copied.
  std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) const;

  /// dq, dk, dv in the inputs' dtype, contiguous; out and lse as forward returned them.
  std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& dout, const at::Tensor& q,
                                                          const at::Tensor& k, const at::Tensor& v,
                                                          const at::Tensor& out, const at::Tensor& lse) const;

 private:
  // Some tokens of a packed tensor: a range, or else an index.
  struct Tokens {
    int64_t begin = 0, length = 0;
    at::Tensor index;  // [length] int64; undefined: a range
    at::Tensor take(const at::Tensor& t, int64_t dim) const;
  };
  // A part as PyTorch's kernels take it.
  struct Call {
    Tokens rows, keys;
    at::Tensor cu_seqlens_q, cu_seqlens_k;
    int64_t max_q, max_k;
    bool causal;
    int window;
  };

  static Call prepare(const AttentionPart& part, at::Device device);
  std::tuple<at::Tensor, at::Tensor> forward_part(const Call& call, const at::Tensor& q, const at::Tensor& k,
                                                  const at::Tensor& v) const;
  std::tuple<at::Tensor, at::Tensor, at::Tensor> backward_part(const Call& call, const at::Tensor& dout,
                                                               const at::Tensor& q, const at::Tensor& k,
                                                               const at::Tensor& v, const at::Tensor& out,
                                                               const at::Tensor& lse) const;
  bool use_cudnn(const at::Tensor& q) const;

  std::vector<Call> calls_;  // the first covers all queries and keys in order
  bool one_document_;        // global, as many queries as keys
  double scale_;
};

}  // namespace prulong
