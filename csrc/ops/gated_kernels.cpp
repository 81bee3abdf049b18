// SPDX-License-Identifier: MIT
// The two halves of gated_attention for CPU, CUDA and fake tensors.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <array>
#include <tuple>

#include "csrc/cpu/blocked_jobs.h"
#include "csrc/head_groups.h"
#include "csrc/hopper/hopper_attention.h"
#include "csrc/ops/checks.h"
#include "csrc/sdpa/sdpa_attention.h"
#include "csrc/sdpa/sdpa_branch.h"

namespace prulong {
namespace {

using Tensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
constexpr const char* kForward = "gated_attention";
constexpr const char* kBackward = "gated_attention_backward";

void check_inputs(const char* op, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& gate,
                  const at::Tensor& cu_seqlens, int64_t sink, int64_t window, double scale) {
  check_qkv(op, q, k, v, /*same_tokens=*/true);
  check_per_head(op, "gate", gate, compute_type(q.scalar_type()), q, k);
  check_cu_seqlens(op, "cu_seqlens", cu_seqlens, q);
  check_locality(op, sink, window, scale);
}

void check_saved(const char* name, const at::Tensor& t, const at::Tensor& q) {
  TORCH_CHECK(t.defined() && t.sym_sizes().equals(q.sym_sizes()), kBackward, ": ", name, " must have q's shape ",
              q.sym_sizes(), ", got ", t.defined() ? t.sym_sizes() : c10::SymIntArrayRef());
  TORCH_CHECK(t.scalar_type() == q.scalar_type() && t.device() == q.device(), kBackward, ": ", name,
              " must have q's dtype and device, ", q.scalar_type(), " on ", q.device(), ", got ", t.scalar_type(),
              " on ", t.device());
}

void check_lse(const char* name, const at::Tensor& t, const at::Tensor& q) {
  TORCH_CHECK(t.defined() && t.dim() == 2 && t.sym_size(0) == q.sym_size(1) && t.sym_size(1) == q.sym_size(0),
              kBackward, ": ", name, " must be [query heads, tokens] = [", q.sym_size(1), ", ", q.sym_size(0),
              "], got ", t.defined() ? t.sym_sizes() : c10::SymIntArrayRef());
  TORCH_CHECK(t.scalar_type() == compute_type(q.scalar_type()) && t.device() == q.device(), kBackward, ": ", name,
              " must be ", compute_type(q.scalar_type()), " on ", q.device(), ", got ", t.scalar_type(), " on ",
              t.device());
}

void check_results(const at::Tensor& dout, const at::Tensor& out, const at::Tensor& delta, const at::Tensor& lse_global,
                   const at::Tensor& lse_local, const at::Tensor& q) {
  check_saved("dout", dout, q);
  check_saved("out", out, q);
  check_saved("delta", delta, q);
  check_lse("lse_global", lse_global, q);
  check_lse("lse_local", lse_local, q);
}

AttentionSpec make_spec(const char* op, const at::Tensor& q, const at::Tensor& cu_seqlens, int64_t max_seqlen,
                        int64_t sink, int64_t window, double scale) {
  const Bounds bounds = read_bounds(op, "cu_seqlens", cu_seqlens, q.size(0), "max_seqlen", max_seqlen);
  return {make_documents(bounds, bounds), bounded(sink, window, q.size(0)), scale};
}

std::vector<HeadKind> kinds_of(const std::vector<double>& gate) {
  std::vector<HeadKind> kinds;
  for (const double z : gate) {
    kinds.push_back(kernels::head_kind(z));
  }
  return kinds;
}

at::Tensor gate_of(const HeadGroup& group, const at::Tensor& gate) {
  return take_heads(gate, 0, group.heads).view({-1, 1, 1});
}

Tensors forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& gate,
                const at::Tensor& cu_seqlens, int64_t max_seqlen, int64_t sink, int64_t window, double scale) {
  check_inputs(kForward, q, k, v, gate, cu_seqlens, sink, window, scale);
  if (hopper::supports(q, k, cu_seqlens, scale)) {
    const GatedResults results =
        hopper::gated_forward(q, k, v, gate, cu_seqlens, bounded(sink, window, k.size(0)), scale);
    return {results.out, results.delta, results.lse_global, results.lse_local};
  }
  const AttentionSpec spec = make_spec(kForward, q, cu_seqlens, max_seqlen, sink, window, scale);
  const std::vector<HeadKind> kinds = kinds_of(read_gate(kForward, gate));
  if (SdpaBranch::supports(q, scale)) {
    const GatedResults results = sdpa::gated_forward(spec, kinds, q, k, v, gate);
    return {results.out, results.delta, results.lse_global, results.lse_local};
  }
  const int64_t tokens = q.size(0), kv_heads = k.size(1);
  const at::TensorOptions lse_options = q.options().dtype(compute_type(q.scalar_type()));
  const at::Tensor out = at::empty(q.sizes(), q.options());
  const at::Tensor delta = at::zeros(q.sizes(), q.options());
  const at::Tensor lse_global = at::zeros({q.size(1), tokens}, lse_options);
  const at::Tensor lse_local = at::zeros_like(lse_global);
  const at::Tensor keys = keys_by_head(k), values = keys_by_head(v);
  std::vector<ForwardJob> jobs;
  std::vector<HeadSlice> slices;
  const auto slice = [&slices](const at::Tensor& whole, int64_t dim, const HeadGroup& group) {
    slices.emplace_back(whole, dim, group.heads);
    return slices.back().part();
  };
  for (const HeadGroup& group : group_heads(kinds, q.is_cuda())) {
    jobs.push_back({.kind = group.kind,
                    .q = take_heads(split_query_heads(q, kv_heads), 1, group.heads),
                    .k = take_heads(keys, 0, group.heads),
                    .v = take_heads(values, 0, group.heads),
                    .gate = gate_of(group, gate),
                    .out = slice(split_query_heads(out, kv_heads), 1, group),
                    .delta = slice(split_query_heads(delta, kv_heads), 1, group),
                    .lse_global = slice(lse_global.unflatten(0, {kv_heads, -1}), 0, group),
                    .lse_local = slice(lse_local.unflatten(0, {kv_heads, -1}), 0, group)});
  }
  blocked_forward(spec, jobs);
  for (const HeadSlice& part : slices) part.write_back();
  return {out, delta, lse_global, lse_local};
}

Tensors backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                 const at::Tensor& gate, const at::Tensor& out, const at::Tensor& delta, const at::Tensor& lse_global,
                 const at::Tensor& lse_local, const at::Tensor& cu_seqlens, int64_t max_seqlen, int64_t sink,
                 int64_t window, double scale, std::array<bool, 4> needs) {
  check_inputs(kBackward, q, k, v, gate, cu_seqlens, sink, window, scale);
  check_results(dout, out, delta, lse_global, lse_local, q);
  if (hopper::supports(q, k, cu_seqlens, scale) && hopper::supports_backward(needs)) {
    const auto [dq, dk, dv, dgate] = hopper::gated_backward(dout, q, k, v, gate, {out, delta, lse_global, lse_local},
                                                            cu_seqlens, bounded(sink, window, k.size(0)), scale);
    const auto if_needed = [&needs](size_t i, const at::Tensor& gradient) {
      return needs[i] ? gradient : at::empty({0}, gradient.options());
    };
    return {if_needed(0, dq), if_needed(1, dk), if_needed(2, dv), if_needed(3, dgate)};
  }
  const AttentionSpec spec = make_spec(kBackward, q, cu_seqlens, max_seqlen, sink, window, scale);
  const std::vector<HeadKind> kinds = kinds_of(read_gate(kBackward, gate));
  if (SdpaBranch::supports(q, scale)) {
    const auto [dq, dk, dv, dgate] =
        sdpa::gated_backward(spec, kinds, dout, q, k, v, gate, {out, delta, lse_global, lse_local}, needs);
    const auto or_empty = [](const at::Tensor& gradient, const at::Tensor& of) {
      return gradient.defined() ? gradient : at::empty({0}, of.options());
    };
    return {or_empty(dq, q), or_empty(dk, k), or_empty(dv, v), or_empty(dgate, gate)};
  }
  const int64_t kv_heads = k.size(1);
  const bool needs_qkv = needs[0] || needs[1] || needs[2];

  // Sums over tiles are kept in the compute type, the gate's in double.
  const at::TensorOptions sums = k.options().dtype(compute_type(k.scalar_type()));
  const at::Tensor dq = needs[0] ? at::empty(q.sizes(), q.options()) : at::empty({0}, q.options());
  const at::Tensor dk = needs[1] ? at::zeros(k.sizes(), sums) : at::empty({0}, sums);
  const at::Tensor dv = needs[2] ? at::zeros(v.sizes(), sums) : at::empty({0}, sums);
  const at::Tensor dgate = at::zeros({needs[3] ? kv_heads : 0}, gate.options().dtype(at::kDouble));
  const at::Tensor keys = keys_by_head(k), values = keys_by_head(v);
  std::vector<BackwardJob> jobs;
  std::vector<HeadSlice> slices;
  const auto slice = [&slices](bool needed, const at::Tensor& whole, int64_t dim, const HeadGroup& group) {
    if (!needed) return at::Tensor();
    slices.emplace_back(whole, dim, group.heads);
    return slices.back().part();
  };
  const auto rows = [&](const at::Tensor& t, const HeadGroup& group) {
    return take_heads(split_query_heads(t, kv_heads), 1, group.heads);
  };
  for (const HeadGroup& group : group_heads(kinds, q.is_cuda())) {
    const bool fractional = group.kind == HeadKind::kFractional;
    if (!needs_qkv && !(fractional && needs[3])) continue;
    jobs.push_back({.kind = group.kind,
                    .dout = rows(dout, group),
                    .q = rows(q, group),
                    .k = take_heads(keys, 0, group.heads),
                    .v = take_heads(values, 0, group.heads),
                    .gate = gate_of(group, gate),
                    .out = rows(out, group),
                    .delta = rows(delta, group),
                    .lse_global = take_heads(lse_global.unflatten(0, {kv_heads, -1}), 0, group.heads),
                    .lse_local = take_heads(lse_local.unflatten(0, {kv_heads, -1}), 0, group.heads),
                    .dq = slice(needs[0], needs[0] ? split_query_heads(dq, kv_heads) : dq, 1, group),
                    .dk = slice(needs[1], needs[1] ? dk.transpose(0, 1) : dk, 0, group),
                    .dv = slice(needs[2], needs[2] ? dv.transpose(0, 1) : dv, 0, group),
                    .dgate = slice(needs[3] && fractional, dgate, 0, group)});
  }
  blocked_backward(spec, jobs);
  for (const HeadSlice& part : slices) part.write_back();
  return {dq, dk.to(k.scalar_type()), dv.to(v.scalar_type()), dgate.to(gate.scalar_type())};
}

Tensors forward_meta(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& gate,
                     const at::Tensor& cu_seqlens, c10::SymInt /*max_seqlen*/, int64_t sink, int64_t window,
                     double scale) {
  check_inputs(kForward, q, k, v, gate, cu_seqlens, sink, window, scale);
  const at::TensorOptions lse_options = q.options().dtype(compute_type(q.scalar_type()));
  const std::array<c10::SymInt, 2> lse_sizes = {q.sym_size(1), q.sym_size(0)};
  return {at::empty_symint(q.sym_sizes(), q.options()), at::empty_symint(q.sym_sizes(), q.options()),
          at::empty_symint(lse_sizes, lse_options), at::empty_symint(lse_sizes, lse_options)};
}

Tensors backward_meta(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                      const at::Tensor& gate, const at::Tensor& out, const at::Tensor& delta,
                      const at::Tensor& lse_global, const at::Tensor& lse_local, const at::Tensor& cu_seqlens,
                      c10::SymInt /*max_seqlen*/, int64_t sink, int64_t window, double scale,
                      std::array<bool, 4> needs) {
  check_inputs(kBackward, q, k, v, gate, cu_seqlens, sink, window, scale);
  check_results(dout, out, delta, lse_global, lse_local, q);
  const auto gradient = [](bool needed, const at::Tensor& t) {
    return needed ? at::empty_symint(t.sym_sizes(), t.options()) : at::empty({0}, t.options());
  };
  return {gradient(needs[0], q), gradient(needs[1], k), gradient(needs[2], v), gradient(needs[3], gate)};
}

}  // namespace

TORCH_LIBRARY_IMPL(prulong, CPU, m) {
  m.impl("gated_attention_forward", TORCH_FN(forward));
  m.impl("gated_attention_backward", TORCH_FN(backward));
}

TORCH_LIBRARY_IMPL(prulong, CUDA, m) {
  m.impl("gated_attention_forward", TORCH_FN(forward));
  m.impl("gated_attention_backward", TORCH_FN(backward));
}

TORCH_LIBRARY_IMPL(prulong, Meta, m) {
  m.impl("gated_attention_forward", TORCH_FN(forward_meta));
  m.impl("gated_attention_backward", TORCH_FN(backward_meta));
}

}  // namespace prulong
