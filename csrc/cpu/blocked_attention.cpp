// SPDX-License-Identifier: MIT
#include "csrc/cpu/blocked_attention.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <vector>

#include "csrc/cpu/blocked_jobs.h"
#include "csrc/head_groups.h"
#include "csrc/ops/checks.h"

namespace prulong::blocked {
namespace {

// [T, Hkv, D] as [Hkv, T, D] in the compute type; a view where the dtype already fits.
at::Tensor keys_by_head(const at::Tensor& k) { return k.to(compute_type(k.scalar_type())).transpose(0, 1); }

at::Tensor gate_of(const HeadGroup& group, const at::Tensor& gate) {
  return take_heads(gate, 0, group.heads).view({-1, 1, 1});
}

// Parts of outputs that jobs write, by groups of heads.
class Outputs {
 public:
  at::Tensor part(const at::Tensor& whole, int64_t dim, const HeadGroup& group) {
    slices_.emplace_back(whole, dim, group.heads);
    return slices_.back().part();
  }
  void write_back() const {
    for (const HeadSlice& slice : slices_) slice.write_back();
  }

 private:
  std::vector<HeadSlice> slices_;
};

}  // namespace

GatedResults gated_forward(const AttentionSpec& spec, const GatedArguments& arguments) {
  const auto& [q, k, v, gate, cu_seqlens, max_seqlen, sink, window, scale] = arguments;
  const int64_t kv_heads = k.size(1);
  const at::TensorOptions lse_options = q.options().dtype(compute_type(q.scalar_type()));
  const at::Tensor lse_global = at::zeros({q.size(1), q.size(0)}, lse_options);
  const GatedResults results = {at::empty(q.sizes(), q.options()), at::zeros(q.sizes(), q.options()), lse_global,
                                at::zeros_like(lse_global)};
  const at::Tensor keys = keys_by_head(k), values = keys_by_head(v);
  std::vector<ForwardJob> jobs;
  Outputs outputs;
  for (const HeadGroup& group : group_heads(spec.heads, q.is_cuda())) {
    jobs.push_back({.kind = group.kind,
                    .q = take_heads(split_query_heads(q, kv_heads), 1, group.heads),
                    .k = take_heads(keys, 0, group.heads),
                    .v = take_heads(values, 0, group.heads),
                    .gate = gate_of(group, gate),
                    .out = outputs.part(split_query_heads(results.out, kv_heads), 1, group),
                    .delta = outputs.part(split_query_heads(results.delta, kv_heads), 1, group),
                    .lse_global = outputs.part(results.lse_global.unflatten(0, {kv_heads, -1}), 0, group),
                    .lse_local = outputs.part(results.lse_local.unflatten(0, {kv_heads, -1}), 0, group)});
  }
  blocked_forward(spec, jobs);
  outputs.write_back();
  return results;
}

GatedGradients gated_backward(const AttentionSpec& spec, const GatedArguments& arguments, const at::Tensor& dout,
                              const GatedResults& results, const std::array<bool, 4>& needs) {
  const auto& [q, k, v, gate, cu_seqlens, max_seqlen, sink, window, scale] = arguments;
  const int64_t kv_heads = k.size(1);
  const bool needs_qkv = needs[0] || needs[1] || needs[2];
  // Sums over tiles are kept in the compute type, the gate's in double.
  const at::TensorOptions sums = k.options().dtype(compute_type(k.scalar_type()));
  GatedGradients gradients;
  if (needs[0]) gradients.dq = at::empty(q.sizes(), q.options());
  if (needs[1]) gradients.dk = at::zeros(k.sizes(), sums);
  if (needs[2]) gradients.dv = at::zeros(v.sizes(), sums);
  if (needs[3]) gradients.dgate = at::zeros({kv_heads}, gate.options().dtype(at::kDouble));

  const at::Tensor keys = keys_by_head(k), values = keys_by_head(v);
  std::vector<BackwardJob> jobs;
  Outputs outputs;
  const auto rows = [&](const at::Tensor& t, const HeadGroup& group) {
    return take_heads(split_query_heads(t, kv_heads), 1, group.heads);
  };
  for (const HeadGroup& group : group_heads(spec.heads, q.is_cuda())) {
    const bool fractional = group.kind == HeadKind::kFractional;
    if (!needs_qkv && !(fractional && needs[3])) continue;
    BackwardJob job = {.kind = group.kind,
                       .dout = rows(dout, group),
                       .q = rows(q, group),
                       .k = take_heads(keys, 0, group.heads),
                       .v = take_heads(values, 0, group.heads),
                       .gate = gate_of(group, gate),
                       .out = rows(results.out, group),
                       .delta = rows(results.delta, group),
                       .lse_global = take_heads(results.lse_global.unflatten(0, {kv_heads, -1}), 0, group.heads),
                       .lse_local = take_heads(results.lse_local.unflatten(0, {kv_heads, -1}), 0, group.heads),
                       .dq = {},
                       .dk = {},
                       .dv = {},
                       .dgate = {}};
    if (needs[0]) job.dq = outputs.part(split_query_heads(gradients.dq, kv_heads), 1, group);
    if (needs[1]) job.dk = outputs.part(gradients.dk.transpose(0, 1), 0, group);
    if (needs[2]) job.dv = outputs.part(gradients.dv.transpose(0, 1), 0, group);
    if (needs[3] && fractional) job.dgate = outputs.part(gradients.dgate, 0, group);
    jobs.push_back(job);
  }
  blocked_backward(spec, jobs);
  outputs.write_back();
  if (needs[1]) gradients.dk = gradients.dk.to(k.scalar_type());
  if (needs[2]) gradients.dv = gradients.dv.to(v.scalar_type());
  if (needs[3]) gradients.dgate = gradients.dgate.to(gate.scalar_type());
  return gradients;
}

std::tuple<at::Tensor, at::Tensor> masked_forward(const AttentionSpec& spec, const MaskedArguments& arguments) {
  const at::Tensor& q = arguments.q;
  const int64_t kv_heads = arguments.k.size(1);
  const at::Tensor out = at::empty(q.sizes(), q.options());
  const at::Tensor lse = at::empty({q.size(1), q.size(0)}, q.options().dtype(compute_type(q.scalar_type())));
  const at::Tensor keys = keys_by_head(arguments.k), values = keys_by_head(arguments.v);
  std::vector<ForwardJob> jobs;
  Outputs outputs;
  for (const HeadGroup& group : group_heads(spec.heads, q.is_cuda())) {
    const at::Tensor lse_part = outputs.part(lse.unflatten(0, {kv_heads, -1}), 0, group);
    jobs.push_back({.kind = group.kind,
                    .q = take_heads(split_query_heads(q, kv_heads), 1, group.heads),
                    .k = take_heads(keys, 0, group.heads),
                    .v = take_heads(values, 0, group.heads),
                    .gate = {},
                    .out = outputs.part(split_query_heads(out, kv_heads), 1, group),
                    .delta = {},
                    .lse_global = lse_part,
                    .lse_local = lse_part});
  }
  blocked_forward(spec, jobs);
  outputs.write_back();
  return {out, lse};
}

}  // namespace prulong::blocked
