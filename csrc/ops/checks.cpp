// SPDX-License-Identifier: MIT
#include "csrc/ops/checks.h"

#include <c10/util/Exception.h>

#include <cmath>

namespace prulong {
namespace {

void check_heads_tensor(const char* op, const char* name, const at::Tensor& t) {
  TORCH_CHECK(t.defined(), op, ": ", name, " must be a tensor, got none");
  TORCH_CHECK(t.dim() == 3, op, ": ", name, " must be [tokens, heads, head_dim], got shape ", t.sym_sizes());
  TORCH_CHECK(t.sym_size(1) > 0 && t.sym_size(2) > 0, op, ": ", name, " must have at least one head and head_dim >= 1",
              ", got shape ", t.sym_sizes());
  TORCH_CHECK(t.layout() == at::kStrided, op, ": ", name, " must be a dense tensor, got layout ", t.layout());
  TORCH_CHECK(t.sym_size(2) == 1 || t.sym_stride(2) == 1, op, ": ", name,
              " must be contiguous in its last dimension, got strides ", t.sym_strides(), "; call .contiguous() first");
}

}  // namespace

at::ScalarType compute_type(at::ScalarType dtype) { return dtype == at::kDouble ? at::kDouble : at::kFloat; }

void check_tokens(const char* op, const char* name, const at::Tensor& t) {
  check_heads_tensor(op, name, t);
  const at::ScalarType dtype = t.scalar_type();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf || dtype == at::kDouble, op, ": ",
              name, " must be float32, bfloat16, float16 or float64, got ", dtype);
  TORCH_CHECK(dtype != at::kDouble || !t.device().is_cuda(), op, ": float64 is only supported on the CPU, got ", name,
              " on device ", t.device());
}

void check_same(const char* op, const char* name, const at::Tensor& t, const char* like_name, const at::Tensor& like) {
  TORCH_CHECK(t.scalar_type() == like.scalar_type(), op, ": ", name, " must have ", like_name, "'s dtype ",
              like.scalar_type(), ", got ", t.scalar_type());
  TORCH_CHECK(t.device() == like.device(), op, ": ", name, " must be on ", like_name, "'s device ", like.device(),
              ", got ", t.device());
}

void check_qkv(const char* op, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool same_tokens) {
  check_tokens(op, "q", q);
  check_heads_tensor(op, "k", k);
  check_heads_tensor(op, "v", v);
  check_same(op, "k", k, "q", q);
  check_same(op, "v", v, "q", q);
  TORCH_CHECK(k.sym_size(2) == q.sym_size(2), op, ": k must have q's head_dim ", q.sym_size(2), ", got ",
              k.sym_size(2));
  TORCH_CHECK(q.sym_size(1) % k.sym_size(1) == 0, op, ": q's heads must be a multiple of k's, got ", q.sym_size(1),
              " query heads and ", k.sym_size(1), " key heads");
  TORCH_CHECK(v.sym_size(0) == k.sym_size(0) && v.sym_size(1) == k.sym_size(1) && v.sym_size(2) == k.sym_size(2), op,
              ": v must have k's shape ", k.sym_sizes(), ", got ", v.sym_sizes());
  TORCH_CHECK(!same_tokens || k.sym_size(0) == q.sym_size(0), op, ": k must have as many tokens as q, ", q.sym_size(0),
              ", got ", k.sym_size(0));
}

void check_per_head(const char* op, const char* name, const at::Tensor& values, at::ScalarType dtype,
                    const at::Tensor& q, const c10::SymInt& kv_heads) {
  TORCH_CHECK(values.defined(), op, ": ", name, " must be a tensor, got none");
  TORCH_CHECK(values.dim() == 1 && values.sym_size(0) == kv_heads, op, ": ", name,
              " must have one value per key head, shape [", kv_heads, "], got ", values.sym_sizes());
  TORCH_CHECK(values.scalar_type() == dtype, op, ": ", name, " must be ", dtype, " for ", q.scalar_type(),
              " inputs, got ", values.scalar_type());
  TORCH_CHECK(values.device() == q.device(), op, ": ", name, " must be on q's device ", q.device(), ", got ",
              values.device());
}

void check_cu_seqlens(const char* op, const char* name, const at::Tensor& cu_seqlens, const at::Tensor& tokens,
                      const char* tokens_name) {
  TORCH_CHECK(cu_seqlens.defined(), op, ": ", name, " must be a tensor, got none");
  TORCH_CHECK(cu_seqlens.dim() == 1 && cu_seqlens.sym_size(0) >= 1, op, ": ", name,
              " must be [documents + 1], got shape ", cu_seqlens.sym_sizes());
  TORCH_CHECK(cu_seqlens.scalar_type() == at::kInt, op, ": ", name, " must be int32, got ", cu_seqlens.scalar_type());
  TORCH_CHECK(cu_seqlens.device() == tokens.device(), op, ": ", name, " must be on ", tokens_name, "'s device ",
              tokens.device(), ", got ", cu_seqlens.device());
}

void check_locality(const char* op, int64_t sink, int64_t window, double scale) {
  TORCH_CHECK(sink >= 0, op, ": sink must be >= 0, got ", sink);
  TORCH_CHECK(window >= 1, op, ": window must be >= 1 (it includes the query itself), got ", window);
  TORCH_CHECK(std::isfinite(scale), op, ": scale must be finite, got ", scale);
}

Bounds read_bounds(const char* op, const char* name, const at::Tensor& cu_seqlens, int64_t tokens, const char* max_name,
                   int64_t max_seqlen) {
  const at::Tensor host = cu_seqlens.to(at::kCPU).contiguous();
  const int32_t* data = host.const_data_ptr<int32_t>();
  const Bounds bounds(data, data + host.numel());
  TORCH_CHECK(bounds.front() == 0, op, ": ", name, " must start at 0, got ", bounds.front());
  TORCH_CHECK(bounds.back() == tokens, op, ": ", name, " must end at the number of tokens, ", tokens, ", got ",
              bounds.back());
  for (size_t d = 0; d + 1 < bounds.size(); ++d) {
    const int64_t length = int64_t{bounds[d + 1]} - bounds[d];
    TORCH_CHECK(length >= 0, op, ": ", name, " must not decrease, got ", bounds[d], " then ", bounds[d + 1],
                " for document ", d);
    TORCH_CHECK(length <= max_seqlen, op, ": ", max_name, " must be at least the longest document's length, got ",
                max_seqlen, " but document ", d, " has ", length, " tokens");
  }
  return bounds;
}

std::vector<DocumentRows> make_documents(const Bounds& q_bounds, const Bounds& k_bounds) {
  std::vector<DocumentRows> documents;
  for (size_t d = 0; d + 1 < q_bounds.size(); ++d) {
    documents.push_back({.q_begin = q_bounds[d],
                         .q_length = q_bounds[d + 1] - q_bounds[d],
                         .k_begin = k_bounds[d],
                         .k_length = k_bounds[d + 1] - k_bounds[d],
                         .index = static_cast<int>(d)});
  }
  return documents;
}

std::vector<HeadKind> read_gate(const char* op, const at::Tensor& gate) {
  const at::Tensor host = gate.to(at::kCPU, at::kDouble).contiguous();
  const double* data = host.const_data_ptr<double>();
  std::vector<HeadKind> kinds;
  for (int64_t h = 0; h < host.numel(); ++h) {
    TORCH_CHECK(data[h] >= 0 && data[h] <= 1, op, ": gate must lie in [0, 1], got ", data[h], " for key head ", h);
    kinds.push_back(kernels::head_kind(data[h]));
  }
  return kinds;
}

}  // namespace prulong
