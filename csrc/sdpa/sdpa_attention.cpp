// SPDX-License-Identifier: MIT
#include "csrc/sdpa/sdpa_attention.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <cstdint>

#include "csrc/elementwise/gate_mix.h"
#include "csrc/gpu_tensor.h"
#include "csrc/head_groups.h"
#include "csrc/sdpa/sdpa_branch.h"

namespace prulong::sdpa {
namespace {

/// The KV heads of one branch, and how to take them from whole tensors.
struct BranchHeads {
  std::vector<int64_t> heads;  // ascending
  int64_t group;               // query heads per KV head

  bool empty() const { return heads.empty(); }
  // Of [T, Hkv * g, D] along dimension 1, or of [Hkv * g, T] along 0.
  at::Tensor take_query_heads(const at::Tensor& t, int64_t dim) const {
    return take_heads(t.unflatten(dim, {-1, group}), dim, heads).flatten(dim, dim + 1);
  }
  at::Tensor take_key_heads(const at::Tensor& t) const { return take_heads(t, 1, heads); }
  // Writes part [heads * g, T] into whole [Hkv * g, T].
  void write_lse(const at::Tensor& whole, const at::Tensor& part) const {
    const HeadSlice slice(whole.unflatten(0, {-1, group}), 0, heads);
    slice.part().copy_(part.view_as(slice.part()));
    slice.write_back();
  }
};

BranchHeads heads_of(const std::vector<HeadKind>& kinds, HeadKind other, int64_t group) {
  BranchHeads branch{{}, group};
  for (size_t h = 0; h < kinds.size(); ++h) {
    if (kinds[h] != other) branch.heads.push_back(static_cast<int64_t>(h));
  }
  return branch;
}

const void* data_of(const at::Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }

// global + (1 - gate) * (local - global) into out [T, heads * g, D], and the difference into delta if that is defined;
// the branches' tensors hold their own heads only.
void mix(const at::Tensor& gate, const at::Tensor& global, const at::Tensor& local, const at::Tensor& out,
         const at::Tensor& delta) {
  C10_CUDA_CHECK(kernels::launch_gate_mix({.type = element_type(out),
                                           .tokens = out.size(0),
                                           .heads = gate.size(0),
                                           .row = out.size(1) / gate.size(0) * out.size(2),
                                           .gate = gate.const_data_ptr<float>(),
                                           .o_global = data_of(global),
                                           .o_local = data_of(local),
                                           .out = out.mutable_data_ptr(),
                                           .delta = delta.defined() ? delta.mutable_data_ptr() : nullptr},
                                          c10::cuda::getCurrentCUDAStream()));
}

at::Tensor empty_branch(const at::Tensor& q, const BranchHeads& branch) {
  if (branch.empty()) return {};
  return at::empty({q.size(0), static_cast<int64_t>(branch.heads.size()) * branch.group, q.size(2)}, q.options());
}

at::Tensor gate_gradient(const at::Tensor& gate, const at::Tensor& dout, const at::Tensor& delta) {
  const int64_t heads = gate.size(0);
  const at::Tensor partial = at::empty({heads, kernels::gate_gradient_parts(dout.size(0))}, gate.options());
  const at::Tensor dgate = at::empty({heads}, gate.options());
  C10_CUDA_CHECK(kernels::launch_gate_gradient({.type = element_type(dout),
                                                .tokens = dout.size(0),
                                                .heads = heads,
                                                .row = dout.size(1) / heads * dout.size(2),
                                                .gate = gate.const_data_ptr<float>(),
                                                .dout = dout.const_data_ptr(),
                                                .delta = delta.const_data_ptr(),
                                                .partial = partial.mutable_data_ptr<float>(),
                                                .dgate = dgate.mutable_data_ptr<float>()},
                                               c10::cuda::getCurrentCUDAStream()));
  return dgate;
}

}  // namespace

GatedResults gated_forward(const AttentionSpec& spec, const GatedArguments& arguments) {
  const auto& [q, k, v, gate, cu_seqlens, max_seqlen, sink, window, scale] = arguments;
  const c10::OptionalDeviceGuard guard(q.device());
  const int64_t group = q.size(1) / k.size(1);
  const BranchHeads global = heads_of(spec.heads, HeadKind::kLocal, group),
                    local = heads_of(spec.heads, HeadKind::kGlobal, group);
  const auto lse_options = q.options().dtype(at::kFloat);
  const GatedResults result = {at::empty(q.sizes(), q.options()), at::empty(q.sizes(), q.options()),
                               at::zeros({q.size(1), q.size(0)}, lse_options),
                               at::zeros({q.size(1), q.size(0)}, lse_options)};
  const auto compute = [&](const BranchHeads& branch, bool is_local, const at::Tensor& lse_whole) {
    if (branch.empty()) return at::Tensor();
    auto [out, lse] = SdpaBranch(spec, is_local, q.device())
                          .forward(branch.take_query_heads(q, 1), branch.take_key_heads(k), branch.take_key_heads(v));
    branch.write_lse(lse_whole, lse);
    return out;
  };
  const at::Tensor o_global = compute(global, false, result.lse_global);
  const at::Tensor o_local = compute(local, true, result.lse_local);
  mix(dense(gate), o_global, o_local, result.out, result.delta);
  return result;
}

GatedGradients gated_backward(const AttentionSpec& spec, const GatedArguments& arguments, const at::Tensor& dout_any,
                              const GatedResults& results, const std::array<bool, 4>& needs) {
  const auto& [q, k, v, gate_any, cu_seqlens, max_seqlen, sink, window, scale] = arguments;
  const c10::OptionalDeviceGuard guard(q.device());
  const int64_t group = q.size(1) / k.size(1);
  const at::Tensor dout = dense(dout_any), gate = dense(gate_any);
  const at::Tensor out = dense(results.out), delta = dense(results.delta);
  at::Tensor dgate;
  if (needs[3]) dgate = gate_gradient(gate, dout, delta);
  if (!needs[0] && !needs[1] && !needs[2]) return {{}, {}, {}, dgate};

  const BranchHeads global = heads_of(spec.heads, HeadKind::kLocal, group),
                    local = heads_of(spec.heads, HeadKind::kGlobal, group);
  at::Tensor o_global = empty_branch(q, global), o_local = empty_branch(q, local);
  C10_CUDA_CHECK(kernels::launch_gate_split({.type = element_type(q),
                                             .tokens = q.size(0),
                                             .heads = gate.size(0),
                                             .row = group * q.size(2),
                                             .gate = gate.const_data_ptr<float>(),
                                             .out = out.const_data_ptr(),
                                             .delta = delta.const_data_ptr(),
                                             .o_global = o_global.defined() ? o_global.mutable_data_ptr() : nullptr,
                                             .o_local = o_local.defined() ? o_local.mutable_data_ptr() : nullptr},
                                            c10::cuda::getCurrentCUDAStream()));

  // A branch's gradients are linear in its output's, so both take dout as it is and the gate weights what they give.
  const auto compute = [&](const BranchHeads& branch, bool is_local, at::Tensor& branch_out, const at::Tensor& lse) {
    if (branch.empty()) return GatedGradients{};
    auto [dq, dk, dv] =
        SdpaBranch(spec, is_local, q.device())
            .backward(branch.take_query_heads(dout, 1), branch.take_query_heads(q, 1), branch.take_key_heads(k),
                      branch.take_key_heads(v), branch_out, branch.take_query_heads(lse, 0));
    branch_out.reset();
    return GatedGradients{dq, dk, dv, {}};
  };
  const GatedGradients from_global = compute(global, false, o_global, results.lse_global);
  const GatedGradients from_local = compute(local, true, o_local, results.lse_local);
  const auto join = [&](bool needed, const at::Tensor& like, const at::Tensor& a, const at::Tensor& b) {
    if (!needed) return at::Tensor();
    const at::Tensor sum = at::empty(like.sizes(), like.options());
    mix(gate, a, b, sum, {});
    return sum;
  };
  return {join(needs[0], q, from_global.dq, from_local.dq), join(needs[1], k, from_global.dk, from_local.dk),
          join(needs[2], v, from_global.dv, from_local.dv), dgate};
}

std::tuple<at::Tensor, at::Tensor> masked_forward(const AttentionSpec& spec, const MaskedArguments& arguments) {
  const at::Tensor& q = arguments.q;
  const int64_t kv_heads = arguments.k.size(1);
  const at::Tensor out = at::empty(q.sizes(), q.options());
  const at::Tensor lse = at::empty({q.size(1), q.size(0)}, q.options().dtype(at::kFloat));
  for (const HeadGroup& group : group_heads(spec.heads, /*cuda=*/true)) {
    const HeadSlice out_part(split_query_heads(out, kv_heads), 1, group.heads);
    const HeadSlice lse_part(lse.unflatten(0, {kv_heads, -1}), 0, group.heads);
    const at::Tensor q_part = take_heads(split_query_heads(q, kv_heads), 1, group.heads);
    const auto [o, o_lse] = SdpaBranch(spec, group.kind == HeadKind::kLocal, q.device())
                                .forward(q_part.flatten(1, 2), take_heads(arguments.k, 1, group.heads),
                                         take_heads(arguments.v, 1, group.heads));
    out_part.part().copy_(o.view_as(out_part.part()));
    lse_part.part().copy_(o_lse.view_as(lse_part.part()));
    out_part.write_back();
    lse_part.write_back();
  }
  return {out, lse};
}

}  // namespace prulong::sdpa
