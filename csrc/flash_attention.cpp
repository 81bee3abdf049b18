// SPDX-License-Identifier: MIT
#include "csrc/flash_attention.h"

#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDAException.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <vector>

namespace prulong {

bool FlashAttention::supports(const at::Tensor& q) {
  const at::ScalarType dtype = q.scalar_type();
  if (!q.is_cuda() || q.size(0) == 0 || (dtype != at::kHalf && dtype != at::kBFloat16)) return false;
  if (q.size(2) % 8 != 0 || q.size(2) > 256) return false;
  int major = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, q.get_device()));
  return major >= 8;
}

FlashAttention::FlashAttention(const AttentionSpec& spec, at::Device device)
    // A longest document of 1 would switch the library to a decode path with another layout of the log-sum-exp; a
    // larger bound is always allowed.
    : max_q_(2), max_k_(2), scale_(spec.scale) {
  std::vector<int32_t> q_bounds = {0}, k_bounds = {0};
  for (const Document& document : spec.documents) {
    // Keys without queries stay in the packed tensors: joining them to the next document would change it, so they make
    // an item without queries of their own, which the library skips.
    if (document.q_length == 0 && document.k_length == 0) continue;
    q_bounds.push_back(static_cast<int32_t>(document.q_begin + document.q_length));
    k_bounds.push_back(static_cast<int32_t>(document.k_begin + document.k_length));
    max_q_ = std::max(max_q_, document.q_length);
    max_k_ = std::max(max_k_, document.k_length);
  }
  const c10::OptionalDeviceGuard guard(device);
  cu_seqlens_q_ = at::tensor(q_bounds, at::TensorOptions().dtype(at::kInt)).to(device);
  cu_seqlens_k_ = at::tensor(k_bounds, at::TensorOptions().dtype(at::kInt)).to(device);
}

std::tuple<at::Tensor, at::Tensor> FlashAttention::forward(const at::Tensor& q, const at::Tensor& k,
                                                           const at::Tensor& v) const {
  const c10::OptionalDeviceGuard guard(q.device());
  auto [out, lse, rng_state, unused, mask] =
      at::_flash_attention_forward(q, k, v, cu_seqlens_q_, cu_seqlens_k_, max_q_, max_k_, /*dropout_p=*/0.0,
                                   /*is_causal=*/true, /*return_debug_mask=*/false, scale_);
  TORCH_CHECK(lse.dim() == 2 && lse.size(0) == q.size(1) && lse.size(1) == q.size(0),
              "flash attention: log-sum-exp must be [query heads, tokens] = [", q.size(1), ", ", q.size(0), "], got ",
              lse.sizes(), "; this build expects torch 2.11");
  return {out, lse};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> FlashAttention::backward(const at::Tensor& dout, const at::Tensor& q,
                                                                        const at::Tensor& k, const at::Tensor& v,
                                                                        const at::Tensor& out,
                                                                        const at::Tensor& lse) const {
  const c10::OptionalDeviceGuard guard(q.device());
  // Only read with dropout.
  const at::Tensor rng_state = at::empty({2}, q.options().dtype(at::kUInt64));
  const at::Tensor unused = at::empty({}, q.options().dtype(at::kUInt64));
  return at::_flash_attention_backward(dout.contiguous(), q, k, v, out.contiguous(), lse.contiguous(), cu_seqlens_q_,
                                       cu_seqlens_k_, max_q_, max_k_, /*dropout_p=*/0.0, /*is_causal=*/true, rng_state,
                                       unused, scale_);
}

}  // namespace prulong
