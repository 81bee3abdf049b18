// SPDX-License-Identifier: MIT
#include "csrc/gated_flash.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/rsub.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include "csrc/flash_attention.h"
#include "csrc/head_groups.h"
#include "csrc/kernels/gate_mix.h"

namespace prulong {
namespace {

kernels::ElementType element_type(const at::Tensor& t) {
  return t.scalar_type() == at::kBFloat16 ? kernels::ElementType::kBFloat16
         : t.scalar_type() == at::kHalf   ? kernels::ElementType::kFloat16
                                          : kernels::ElementType::kFloat32;
}

// Of [T, H, g, D] whose [g, D] rows have no gaps.
kernels::RowLayout layout_of(const at::Tensor& t) {
  TORCH_INTERNAL_ASSERT(t.stride(3) == 1 && t.stride(2) == t.size(3));
  return {t.stride(0), t.stride(1)};
}

void mix(const at::Tensor& o_global, const at::Tensor& o_local, const at::Tensor& gate, const at::Tensor& out,
         const at::Tensor& delta) {
  const at::Tensor z = gate.contiguous();
  C10_CUDA_CHECK(kernels::launch_gate_mix({.type = element_type(out),
                                           .tokens = out.size(0),
                                           .heads = out.size(1),
                                           .group = out.size(2),
                                           .dim = out.size(3),
                                           .o_global = o_global.const_data_ptr(),
                                           .o_local = o_local.const_data_ptr(),
                                           .gate = z.const_data_ptr<float>(),
                                           .out = out.mutable_data_ptr(),
                                           .delta = delta.mutable_data_ptr(),
                                           .global_layout = layout_of(o_global),
                                           .local_layout = layout_of(o_local),
                                           .out_layout = layout_of(out),
                                           .delta_layout = layout_of(delta)},
                                          c10::cuda::getCurrentCUDAStream()));
}

// [H] float32: the gates' gradients.
at::Tensor gate_gradient(const at::Tensor& dout, const at::Tensor& delta) {
  const int64_t parts = kernels::gate_gradient_parts(dout.size(0));
  const at::Tensor partial = at::empty({dout.size(1), parts}, dout.options().dtype(at::kFloat));
  const at::Tensor dgate = at::empty({dout.size(1)}, partial.options());
  C10_CUDA_CHECK(kernels::launch_gate_gradient({.type = element_type(dout),
                                                .tokens = dout.size(0),
                                                .heads = dout.size(1),
                                                .group = dout.size(2),
                                                .dim = dout.size(3),
                                                .dout = dout.const_data_ptr(),
                                                .delta = delta.const_data_ptr(),
                                                .partial = partial.mutable_data_ptr<float>(),
                                                .dgate = dgate.mutable_data_ptr<float>(),
                                                .dout_layout = layout_of(dout),
                                                .delta_layout = layout_of(delta)},
                                               c10::cuda::getCurrentCUDAStream()));
  return dgate;
}

// The inputs of one group of KV heads.
struct GroupInputs {
  at::Tensor q;     // [T, H, g, D]
  at::Tensor k, v;  // [T, H, D]
  at::Tensor gate;  // [H]
};

GroupInputs take_inputs(const GatedTensors& tensors, const HeadGroup& group) {
  return {take_heads(split_query_heads(tensors.q, tensors.k.size(1)), 1, group.heads),
          take_heads(tensors.k, 1, group.heads), take_heads(tensors.v, 1, group.heads),
          take_heads(tensors.gate, 0, group.heads)};
}

// One branch's saved outputs and its output gradient, all [T, H, g, D], and log-sum-exp [H, g, T].
struct Branch {
  at::Tensor dout, out, lse;
};

// Gradients of a group, added to: dq [T, H, g, D] float32, dk and dv [T, H, D] float32.
struct GroupGradients {
  at::Tensor dq, dk, dv;
};

void add_global(const FlashAttention& flash, const GroupInputs& in, const Branch& branch,
                const GroupGradients& gradients) {
  const auto dtype = in.q.scalar_type();
  auto [dq, dk, dv] = flash.backward(branch.dout.to(dtype).flatten(1, 2), in.q.flatten(1, 2), in.k, in.v,
                                     branch.out.to(dtype).flatten(1, 2), branch.lse.flatten(0, 1));
  if (gradients.dq.defined()) gradients.dq.add_(dq.view_as(in.q));
  if (gradients.dk.defined()) gradients.dk.add_(dk);
  if (gradients.dv.defined()) gradients.dv.add_(dv);
}

void add_local(const AttentionSpec& spec, const GroupInputs& in, const Branch& branch,
               const GroupGradients& gradients) {
  const at::Tensor dq = gradients.dq.defined() ? at::empty_like(gradients.dq) : at::Tensor();
  blocked_backward(spec, {{.kind = HeadKind::kLocal,
                           .dout = branch.dout,
                           .q = in.q,
                           .k = keys_by_head(in.k),
                           .v = keys_by_head(in.v),
                           .gate = {},
                           .out = branch.out,
                           .delta = {},
                           .lse_global = {},
                           .lse_local = branch.lse,
                           .dq = dq,
                           .dk = gradients.dk.defined() ? gradients.dk.transpose(0, 1) : at::Tensor(),
                           .dv = gradients.dv.defined() ? gradients.dv.transpose(0, 1) : at::Tensor(),
                           .dgate = {}}});
  if (dq.defined()) gradients.dq.add_(dq);
}

}  // namespace

void gated_flash_forward(const AttentionSpec& spec, const std::vector<HeadKind>& kinds, const GatedTensors& tensors) {
  const c10::OptionalDeviceGuard guard(tensors.q.device());
  const int64_t kv_heads = tensors.k.size(1);
  const FlashAttention flash(spec, tensors.q.device());
  for (const HeadGroup& group : group_heads(kinds, true)) {
    const GroupInputs in = take_inputs(tensors, group);
    const HeadSlice out(split_query_heads(tensors.out, kv_heads), 1, group.heads);
    const HeadSlice delta(split_query_heads(tensors.delta, kv_heads), 1, group.heads);
    const HeadSlice lse_global(tensors.lse_global.unflatten(0, {kv_heads, -1}), 0, group.heads);
    const HeadSlice lse_local(tensors.lse_local.unflatten(0, {kv_heads, -1}), 0, group.heads);
    at::Tensor o_global, o_local = out.part();
    if (group.kind != HeadKind::kLocal) {
      auto [o, lse] = flash.forward(in.q.flatten(1, 2), in.k, in.v);
      o_global = o.contiguous().view_as(in.q);
      lse_global.part().copy_(lse.view_as(lse_global.part()));
    }
    if (group.kind != HeadKind::kGlobal) {
      blocked_forward(spec, {{.kind = HeadKind::kLocal,
                              .q = in.q,
                              .k = keys_by_head(in.k),
                              .v = keys_by_head(in.v),
                              .gate = {},
                              .out = o_local,
                              .delta = {},
                              .lse_global = {},
                              .lse_local = lse_local.part()}});
    }
    if (group.kind == HeadKind::kGlobal) out.part().copy_(o_global);
    if (group.kind == HeadKind::kFractional) mix(o_global, o_local, in.gate, out.part(), delta.part());
    for (const HeadSlice* slice : {&out, &delta, &lse_global, &lse_local}) slice->write_back();
  }
}

void gated_flash_backward(const AttentionSpec& spec, const std::vector<HeadKind>& kinds, const GatedTensors& tensors,
                          const at::Tensor& dout, const GatedGradients& gradients) {
  const c10::OptionalDeviceGuard guard(tensors.q.device());
  const int64_t kv_heads = tensors.k.size(1);
  const FlashAttention flash(spec, tensors.q.device());
  const at::Tensor dout_rows = split_query_heads(dout.contiguous(), kv_heads);
  const at::Tensor out_rows = split_query_heads(tensors.out.contiguous(), kv_heads);
  const at::Tensor delta_rows = split_query_heads(tensors.delta.contiguous(), kv_heads);
  const at::Tensor lse_global = tensors.lse_global.unflatten(0, {kv_heads, -1});
  const at::Tensor lse_local = tensors.lse_local.unflatten(0, {kv_heads, -1});
  const bool needs_qkv = gradients.dq.defined() || gradients.dk.defined() || gradients.dv.defined();
  for (const HeadGroup& group : group_heads(kinds, true)) {
    const at::Tensor dout_part = take_heads(dout_rows, 1, group.heads);
    const at::Tensor delta = take_heads(delta_rows, 1, group.heads);
    if (group.kind == HeadKind::kFractional && gradients.dgate.defined()) {
      const HeadSlice dgate(gradients.dgate, 0, group.heads);
      dgate.part().copy_(gate_gradient(dout_part, delta));
      dgate.write_back();
    }
    if (!needs_qkv) continue;
    const GroupInputs in = take_inputs(tensors, group);
    const at::Tensor out = take_heads(out_rows, 1, group.heads);
    std::vector<HeadSlice> slices;
    const auto slice = [&](const at::Tensor& whole) {
      if (!whole.defined()) return at::Tensor();
      slices.emplace_back(whole, 1, group.heads);
      return slices.back().part();
    };
    const at::Tensor dq =
        gradients.dq.defined() ? at::zeros(in.q.sizes(), in.q.options().dtype(at::kFloat)) : at::Tensor();
    const GroupGradients sums = {dq, slice(gradients.dk), slice(gradients.dv)};
    Branch global = {dout_part, out, take_heads(lse_global, 0, group.heads)};
    Branch local = {dout_part, out, take_heads(lse_local, 0, group.heads)};
    if (group.kind == HeadKind::kFractional) {
      const at::Tensor z = in.gate.view({1, -1, 1, 1});
      const at::Tensor rest = at::rsub(z, 1);
      global.dout = dout_part * z;
      global.out = out + rest * delta;
      local.dout = dout_part * rest;
      local.out = out - z * delta;
    }
    if (group.kind != HeadKind::kLocal) add_global(flash, in, global, sums);
    if (group.kind != HeadKind::kGlobal) add_local(spec, in, local, sums);
    if (dq.defined()) slice(split_query_heads(gradients.dq, kv_heads)).copy_(dq);
    for (const HeadSlice& part : slices) part.write_back();
  }
}

}  // namespace prulong
