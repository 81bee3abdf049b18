// SPDX-License-Identifier: MIT
// The two halves of gated attention for CPU, CUDA and fake tensors: checks, and the backend's work.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <array>
#include <tuple>
#include <utility>

#include "csrc/cpu/blocked_attention.h"
#include "csrc/hopper/hopper_attention.h"
#include "csrc/ops/backend.h"
#include "csrc/ops/checks.h"
#include "csrc/ops/gated_attention.h"
#include "csrc/sdpa/sdpa_attention.h"

namespace prulong {
namespace {

using Tensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using Needs = std::array<bool, 4>;  // order q, k, v, gate
constexpr const char* kForward = "gated_attention";
constexpr const char* kBackward = "gated_attention_backward";

void check_arguments(const char* op, const GatedArguments& a) {
  check_qkv(op, a.q, a.k, a.v, /*same_tokens=*/true);
  check_per_head(op, "gate", a.gate, compute_type(a.q.scalar_type()), a.q, a.k.sym_size(1));
  check_cu_seqlens(op, "cu_seqlens", a.cu_seqlens, a.q);
  check_locality(op, a.sink, a.window, a.scale);
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

void check_results(const at::Tensor& dout, const GatedResults& results, const at::Tensor& q) {
  check_saved("dout", dout, q);
  check_saved("out", results.out, q);
  check_saved("delta", results.delta, q);
  check_lse("lse_global", results.lse_global, q);
  check_lse("lse_local", results.lse_local, q);
}

AttentionSpec read_spec(const char* op, const GatedArguments& a) {
  const int64_t tokens = a.q.size(0);
  const Bounds bounds =
      read_bounds(op, "cu_seqlens", a.cu_seqlens, tokens, "max_seqlen", a.max_seqlen.guard_int(__FILE__, __LINE__));
  return {make_documents(bounds, bounds), read_gate(op, a.gate), bounded(a.sink, a.window, tokens), a.scale};
}

GatedResults forward(const GatedArguments& a) {
  check_arguments(kForward, a);
  return run_on(
      choose_backend(a.q, a.k, a.cu_seqlens, a.scale), [&] { return read_spec(kForward, a); },
      [&] { return hopper::gated_forward(a); }, [&](const AttentionSpec& spec) { return sdpa::gated_forward(spec, a); },
      [&](const AttentionSpec& spec) { return blocked::gated_forward(spec, a); });
}

GatedGradients backward(const GatedArguments& a, const at::Tensor& dout, const GatedResults& results,
                        const Needs& needs) {
  check_arguments(kBackward, a);
  check_results(dout, results, a.q);
  Backend backend = choose_backend(a.q, a.k, a.cu_seqlens, a.scale);
  // The gate's gradient alone needs no attention; PyTorch's backend, which takes all that Hopper's takes, knows that.
  if (backend == Backend::kHopper && !needs[0] && !needs[1] && !needs[2]) backend = Backend::kSdpa;
  return run_on(
      backend, [&] { return read_spec(kBackward, a); }, [&] { return hopper::gated_backward(a, dout, results); },
      [&](const AttentionSpec& spec) { return sdpa::gated_backward(spec, a, dout, results, needs); },
      [&](const AttentionSpec& spec) { return blocked::gated_backward(spec, a, dout, results, needs); });
}

GatedResults forward_meta(const GatedArguments& a) {
  check_arguments(kForward, a);
  const at::Tensor& q = a.q;
  const at::TensorOptions lse_options = q.options().dtype(compute_type(q.scalar_type()));
  const std::array<c10::SymInt, 2> lse_sizes = {q.sym_size(1), q.sym_size(0)};
  return {at::empty_symint(q.sym_sizes(), q.options()), at::empty_symint(q.sym_sizes(), q.options()),
          at::empty_symint(lse_sizes, lse_options), at::empty_symint(lse_sizes, lse_options)};
}

GatedGradients backward_meta(const GatedArguments& a, const at::Tensor& dout, const GatedResults& results,
                             const Needs& /*needs*/) {
  check_arguments(kBackward, a);
  check_results(dout, results, a.q);
  const auto like = [](const at::Tensor& t) { return at::empty_symint(t.sym_sizes(), t.options()); };
  return {like(a.q), like(a.k), like(a.v), like(a.gate)};
}

// The schemas' flat lists (library.cpp) as structs, and back.
template <GatedResults (*kRun)(const GatedArguments&)>
Tensors forward_op(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& gate,
                   const at::Tensor& cu_seqlens, c10::SymInt max_seqlen, int64_t sink, int64_t window, double scale) {
  auto [out, delta, lse_global, lse_local] =
      kRun({q, k, v, gate, cu_seqlens, std::move(max_seqlen), sink, window, scale});
  return {out, delta, lse_global, lse_local};
}

template <GatedGradients (*kRun)(const GatedArguments&, const at::Tensor&, const GatedResults&, const Needs&)>
Tensors backward_op(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                    const at::Tensor& gate, const at::Tensor& out, const at::Tensor& delta,
                    const at::Tensor& lse_global, const at::Tensor& lse_local, const at::Tensor& cu_seqlens,
                    c10::SymInt max_seqlen, int64_t sink, int64_t window, double scale, Needs needs) {
  const auto [dq, dk, dv, dgate] = kRun({q, k, v, gate, cu_seqlens, std::move(max_seqlen), sink, window, scale}, dout,
                                        {out, delta, lse_global, lse_local}, needs);
  const auto if_needed = [](bool needed, const at::Tensor& gradient, const at::Tensor& of) {
    return needed ? gradient : at::empty({0}, of.options());
  };
  return {if_needed(needs[0], dq, q), if_needed(needs[1], dk, k), if_needed(needs[2], dv, v),
          if_needed(needs[3], dgate, gate)};
}

}  // namespace

TORCH_LIBRARY_IMPL(prulong, CPU, m) {
  m.impl("gated_attention_forward", TORCH_FN(forward_op<forward>));
  m.impl("gated_attention_backward", TORCH_FN(backward_op<backward>));
}

TORCH_LIBRARY_IMPL(prulong, CUDA, m) {
  m.impl("gated_attention_forward", TORCH_FN(forward_op<forward>));
  m.impl("gated_attention_backward", TORCH_FN(backward_op<backward>));
}

TORCH_LIBRARY_IMPL(prulong, Meta, m) {
  m.impl("gated_attention_forward", TORCH_FN(forward_op<forward_meta>));
  m.impl("gated_attention_backward", TORCH_FN(backward_op<backward_meta>));
}

}  // namespace prulong
