// SPDX-License-Identifier: MIT
#include "csrc/sdpa/sdpa_branch.h"

#include <ATen/Context.h>
#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/_scaled_dot_product_cudnn_attention.h>
#include <ATen/ops/_scaled_dot_product_cudnn_attention_backward.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "csrc/elementwise/gate_mix.h"
#include "csrc/gpu_tensor.h"

namespace prulong {
namespace {

// Rows of the sink's part in one segment: the backward pass gives each segment its own blocks, so the few sink keys do
// not leave most of the GPU idle.
constexpr int kSinkRows = 4096;
// cuDNN makes a plan for every new shape, which short documents do not pay back.
constexpr int64_t kMinCudnnTokens = 2048;

// As PyTorch's kernels read q, k and v, without checking: rows of whole 16-byte vectors.
at::Tensor readable(const at::Tensor& t) {
  const bool aligned = reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0;
  return aligned && t.stride(0) % 8 == 0 && t.stride(1) % 8 == 0 ? t : t.clone(at::MemoryFormat::Contiguous);
}

// [T, H, D] as cuDNN's [1, H, T, D].
at::Tensor heads_first(const at::Tensor& t) { return t.transpose(0, 1).unsqueeze(0); }

// The inverse, dense.
at::Tensor tokens_first(const at::Tensor& t) { return t.squeeze(0).transpose(0, 1).contiguous(); }

struct Softmax {
  at::Tensor out, lse;
};

// Joins a part's softmax over other keys to rows [begin, begin + n), or to those of index.
void merge(const Softmax& whole, const Softmax& part, int64_t begin, const at::Tensor& index) {
  const at::Tensor part_out = part.out.contiguous(), part_lse = part.lse.contiguous();
  C10_CUDA_CHECK(
      kernels::launch_softmax_merge({.type = element_type(whole.out),
                                     .rows = part_out.size(0),
                                     .heads = part_out.size(1),
                                     .dim = part_out.size(2),
                                     .row_index = index.defined() ? index.const_data_ptr<int64_t>() : nullptr,
                                     .first_row = begin,
                                     .lse_stride = whole.lse.stride(0),
                                     .part_out = part_out.const_data_ptr(),
                                     .part_lse = part_lse.const_data_ptr<float>(),
                                     .out = whole.out.mutable_data_ptr(),
                                     .lse = whole.lse.mutable_data_ptr<float>()},
                                    c10::cuda::getCurrentCUDAStream()));
}

}  // namespace

bool SdpaBranch::supports(const at::Tensor& q, double scale) {
  const at::ScalarType dtype = q.scalar_type();
  if (!q.is_cuda() || q.size(0) == 0 || (dtype != at::kHalf && dtype != at::kBFloat16)) return false;
  if (q.size(2) % 8 != 0 || q.size(2) > 256 || !(static_cast<float>(scale) > 0)) return false;
  const int capability = compute_capability(q);
  return capability >= kPortableCapability && (q.size(2) <= 192 || capability == 80 || capability == 90);
}

SdpaBranch::SdpaBranch(const AttentionSpec& spec, bool local, at::Device device) : scale_(spec.scale) {
  const c10::OptionalDeviceGuard guard(device);
  if (local) {
    for (const AttentionPart& part : local_parts(spec.documents, spec.locality, kSinkRows)) {
      calls_.push_back(prepare(part, device));
    }
  } else {
    calls_.push_back(prepare(global_part(spec.documents), device));
  }
  one_document_ = false;
  if (local) return;
  const AttentionPart part = global_part(spec.documents);
  one_document_ = part.segments.size() == 1 && part.segments[0].q_length == part.segments[0].k_length;
}

at::Tensor SdpaBranch::Tokens::take(const at::Tensor& t, int64_t dim) const {
  return index.defined() ? at::index_select(t, dim, index) : t.narrow(dim, begin, length);
}

SdpaBranch::Call SdpaBranch::prepare(const AttentionPart& part, at::Device device) {
  // A longest segment of 1 would switch flash attention to a decode path with another layout of the log-sum-exp; a
  // larger bound is always allowed.
  Call call{{}, {}, {}, {}, 2, 2, part.causal, part.window};
  std::vector<int32_t> q_bounds = {0}, k_bounds = {0};
  std::vector<at::Tensor> rows, keys;
  bool rows_adjacent = true, keys_adjacent = true;
  const DocumentRows& first = part.segments.front();
  for (const DocumentRows& segment : part.segments) {
    rows_adjacent &= segment.q_begin == first.q_begin + q_bounds.back();
    keys_adjacent &= segment.k_begin == first.k_begin + k_bounds.back();
    q_bounds.push_back(q_bounds.back() + segment.q_length);
    k_bounds.push_back(k_bounds.back() + segment.k_length);
    rows.push_back(at::arange(segment.q_begin, segment.q_begin + segment.q_length));
    keys.push_back(at::arange(segment.k_begin, segment.k_begin + segment.k_length));
    call.max_q = std::max<int64_t>(call.max_q, segment.q_length);
    call.max_k = std::max<int64_t>(call.max_k, segment.k_length);
  }
  call.rows = {first.q_begin, q_bounds.back(), rows_adjacent ? at::Tensor() : at::cat(rows).to(device)};
  call.keys = {first.k_begin, k_bounds.back(), keys_adjacent ? at::Tensor() : at::cat(keys).to(device)};
  call.cu_seqlens_q = at::tensor(q_bounds, at::TensorOptions().dtype(at::kInt)).to(device);
  call.cu_seqlens_k = at::tensor(k_bounds, at::TensorOptions().dtype(at::kInt)).to(device);
  return call;
}

bool SdpaBranch::use_cudnn(const at::Tensor& q) const {
  // cuDNN's backward pass has no deterministic mode here.
  return one_document_ && q.size(0) >= kMinCudnnTokens && q.size(2) <= 128 && compute_capability(q) >= 90 &&
         at::globalContext().userEnabledCuDNNSDP() && !at::globalContext().deterministicAlgorithms();
}

std::tuple<at::Tensor, at::Tensor> SdpaBranch::forward_part(const Call& call, const at::Tensor& q, const at::Tensor& k,
                                                            const at::Tensor& v) const {
  if (use_cudnn(q)) {
    const auto result = at::_scaled_dot_product_cudnn_attention(
        heads_first(q), heads_first(k), heads_first(v), /*attn_bias=*/std::nullopt, /*compute_log_sumexp=*/true,
        /*dropout_p=*/0.0, /*is_causal=*/true, /*return_debug_mask=*/false, scale_);
    const at::Tensor& lse = std::get<1>(result);
    TORCH_CHECK(lse.numel() == q.size(1) * q.size(0) && lse.size(1) == q.size(1) && lse.scalar_type() == at::kFloat,
                "cuDNN attention: log-sum-exp must be [1, query heads, tokens, 1] = [1, ", q.size(1), ", ", q.size(0),
                ", 1] float32, got ", lse.sizes(), " ", lse.scalar_type(), "; this build expects torch 2.11");
    return {tokens_first(std::get<0>(result)), lse.reshape({q.size(1), q.size(0)}).contiguous()};
  }
  std::optional<int64_t> left, right;
  if (call.window > 0) {
    left = call.window - 1;
    right = 0;
  }
  auto [out, lse, rng_state, unused, mask] = at::_flash_attention_forward(
      q, k, v, call.cu_seqlens_q, call.cu_seqlens_k, call.max_q, call.max_k, /*dropout_p=*/0.0, call.causal,
      /*return_debug_mask=*/false, scale_, left, right);
  TORCH_CHECK(lse.dim() == 2 && lse.size(0) == q.size(1) && lse.size(1) == q.size(0),
              "flash attention: log-sum-exp must be [query heads, tokens] = [", q.size(1), ", ", q.size(0), "], got ",
              lse.sizes(), "; this build expects torch 2.11");
  return {out.contiguous(), lse.contiguous()};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> SdpaBranch::backward_part(const Call& call, const at::Tensor& dout,
                                                                         const at::Tensor& q, const at::Tensor& k,
                                                                         const at::Tensor& v, const at::Tensor& out,
                                                                         const at::Tensor& lse) const {
  if (use_cudnn(q)) {
    // Both only read with dropout.
    const at::Tensor seed = at::empty({}, q.options().dtype(at::kLong));
    const at::Tensor offset = at::empty({}, q.options().dtype(at::kLong));
    // PyTorch keeps cuDNN's plan by the inputs' strides alone, so dout and out must always come with the same ones.
    auto [dq, dk, dv] = at::_scaled_dot_product_cudnn_attention_backward(
        heads_first(dout.contiguous()), heads_first(q), heads_first(k), heads_first(v), heads_first(out.contiguous()),
        lse.contiguous().view({1, q.size(1), q.size(0), 1}), seed, offset, /*attn_bias=*/at::Tensor(),
        /*cum_seq_q=*/at::Tensor(), /*cum_seq_k=*/at::Tensor(), q.size(0), k.size(0), /*dropout_p=*/0.0,
        /*is_causal=*/true, scale_);
    return {tokens_first(dq), tokens_first(dk), tokens_first(dv)};
  }
  // Only read with dropout.
  const at::Tensor rng_state = at::empty({2}, q.options().dtype(at::kUInt64));
  const at::Tensor unused = at::empty({}, q.options().dtype(at::kUInt64));
  std::optional<int64_t> left, right;
  if (call.window > 0) {
    left = call.window - 1;
    right = 0;
  }
  auto [dq, dk, dv] = at::_flash_attention_backward(
      dout.contiguous(), q, k, v, out.contiguous(), lse.contiguous(), call.cu_seqlens_q, call.cu_seqlens_k, call.max_q,
      call.max_k, /*dropout_p=*/0.0, call.causal, rng_state, unused, scale_, left, right);
  return {dq.contiguous(), dk.contiguous(), dv.contiguous()};
}

std::tuple<at::Tensor, at::Tensor> SdpaBranch::forward(const at::Tensor& q_any, const at::Tensor& k_any,
                                                       const at::Tensor& v_any) const {
  const c10::OptionalDeviceGuard guard(q_any.device());
  const at::Tensor q = readable(q_any), k = readable(k_any), v = readable(v_any);
  auto [out, lse] = forward_part(calls_.front(), q, k, v);
  for (size_t i = 1; i < calls_.size(); ++i) {
    const Call& call = calls_[i];
    const auto [part_out, part_lse] =
        forward_part(call, call.rows.take(q, 0), call.keys.take(k, 0), call.keys.take(v, 0));
    merge({out, lse}, {part_out, part_lse}, call.rows.begin, call.rows.index);
  }
  return {out, lse};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> SdpaBranch::backward(const at::Tensor& dout, const at::Tensor& q_any,
                                                                    const at::Tensor& k_any, const at::Tensor& v_any,
                                                                    const at::Tensor& out,
                                                                    const at::Tensor& lse) const {
  const c10::OptionalDeviceGuard guard(q_any.device());
  const at::Tensor q = readable(q_any), k = readable(k_any), v = readable(v_any);
  auto [dq, dk, dv] = backward_part(calls_.front(), dout, q, k, v, out, lse);
  if (calls_.size() == 1) return {dq, dk, dv};
  // Every row of a sink's part adds to the same few keys.
  const at::Tensor dk_sum = dk.to(at::kFloat), dv_sum = dv.to(at::kFloat);
  const auto add = [](const Tokens& tokens, const at::Tensor& sum, const at::Tensor& part) {
    if (tokens.index.defined()) {
      at::Tensor(sum).index_add_(0, tokens.index, part.to(sum.scalar_type()));
    } else {
      sum.narrow(0, tokens.begin, tokens.length).add_(part);
    }
  };
  for (size_t i = 1; i < calls_.size(); ++i) {
    const Call& call = calls_[i];
    const auto [part_dq, part_dk, part_dv] =
        backward_part(call, call.rows.take(dout, 0), call.rows.take(q, 0), call.keys.take(k, 0), call.keys.take(v, 0),
                      call.rows.take(out, 0), call.rows.take(lse, 1));
    add(call.rows, dq, part_dq);
    add(call.keys, dk_sum, part_dk);
    add(call.keys, dv_sum, part_dv);
  }
  return {dq, dk_sum.to(k.scalar_type()), dv_sum.to(v.scalar_type())};
}

}  // namespace prulong
