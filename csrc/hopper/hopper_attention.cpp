// SPDX-License-Identifier: MIT
#include "csrc/hopper/hopper_attention.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include "csrc/attention_spec.h"
#include "csrc/gpu_tensor.h"
#include "csrc/hopper/address.h"
#include "csrc/hopper/backward/backward.h"
#include "csrc/hopper/combine.h"
#include "csrc/hopper/planned_forward.h"

namespace prulong::hopper {
namespace {

// The tensor itself where bulk copies can address it, else a dense copy.
at::Tensor addressable(const at::Tensor& t) {
  if (t.stride(2) == 1 && kernels::fits_tensor_map(packed(t))) return t;
  return t.clone(at::MemoryFormat::Contiguous);
}

kernels::Batch make_batch(const at::Tensor& q, const at::Tensor& k, Locality locality, const at::Tensor& q_bounds,
                          const at::Tensor& k_bounds) {
  kernels::Batch batch = {};
  batch.documents = static_cast<int>(q_bounds.size(0)) - 1;
  batch.q_tokens = static_cast<int>(q.size(0));
  batch.k_tokens = static_cast<int>(k.size(0));
  batch.query_heads = static_cast<int>(q.size(1));
  batch.kv_heads = static_cast<int>(k.size(1));
  batch.head_dim = static_cast<int>(q.size(2));
  batch.locality = locality;
  batch.q_bounds = q_bounds.const_data_ptr<int>();
  batch.k_bounds = k_bounds.const_data_ptr<int>();
  return batch;
}

template <class Arguments>
Locality locality_of(const Arguments& arguments) {
  return bounded(arguments.sink, arguments.window, arguments.k.size(0));
}

}  // namespace

bool supports(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cu_seqlens, double scale) {
  const at::ScalarType dtype = q.scalar_type();
  if (!q.is_cuda() || (dtype != at::kHalf && dtype != at::kBFloat16)) return false;
  if (q.size(2) != 64 && q.size(2) != 128) return false;
  if (q.size(0) == 0 || k.size(0) == 0 || cu_seqlens.size(0) < 2) return false;
  // The upper bound keeps a scaled Softmax::kLowest finite.
  if (!(static_cast<float>(scale) > 0 && scale <= 128)) return false;
  if (!kernels::within_limits(q.size(0), k.size(0), cu_seqlens.size(0) - 1, q.size(1))) return false;
  return compute_capability(q) == 90;
}

GatedResults gated_forward(const GatedArguments& arguments) {
  const c10::OptionalDeviceGuard guard(arguments.q.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const at::Tensor q = addressable(arguments.q), k = addressable(arguments.k), v = addressable(arguments.v);
  const at::Tensor gate = arguments.gate.contiguous(), cu_seqlens = arguments.cu_seqlens.contiguous();
  const GatedResults result = {at::empty(q.sizes(), q.options()), at::empty(q.sizes(), q.options()),
                               empty_statistics(q), empty_statistics(q)};

  kernels::Batch batch = make_batch(q, k, locality_of(arguments), cu_seqlens, cu_seqlens);
  batch.gate = gate.const_data_ptr<float>();
  const Planned planned = plan(batch, {.query_rows = kernels::forward_query_rows(batch.head_dim)}, q, stream);
  run_forward({.schedule = planned.schedule,
               .q = packed(q),
               .k = packed(k),
               .v = packed(v),
               .scale = static_cast<float>(arguments.scale),
               .out = result.out.mutable_data_ptr(),
               .delta = result.delta.mutable_data_ptr(),
               .lse_global = result.lse_global.mutable_data_ptr<float>(),
               .lse_local = result.lse_local.mutable_data_ptr<float>(),
               .partial_out = nullptr,
               .partial_lse = nullptr},
              stream);
  return result;
}

GatedGradients gated_backward(const GatedArguments& arguments, const at::Tensor& dout_any,
                              const GatedResults& results) {
  const c10::OptionalDeviceGuard guard(arguments.q.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const at::Tensor q = addressable(arguments.q), k = addressable(arguments.k), v = addressable(arguments.v);
  const at::Tensor dout = addressable(dout_any), out = dense(results.out), delta = dense(results.delta);
  const at::Tensor lse_global = results.lse_global.contiguous(), lse_local = results.lse_local.contiguous();
  const at::Tensor gate = arguments.gate.contiguous(), cu_seqlens = arguments.cu_seqlens.contiguous();
  const at::Tensor dq = at::empty(q.sizes(), q.options()), dk = at::empty(k.sizes(), k.options());
  const at::Tensor dv = at::empty(v.sizes(), v.options()), dgate = at::empty(gate.sizes(), gate.options());

  kernels::Batch batch = make_batch(q, k, locality_of(arguments), cu_seqlens, cu_seqlens);
  batch.gate = gate.const_data_ptr<float>();
  const Planned planned = plan(batch, {.with_keys = true}, q, stream);
  const auto scratch_bytes = static_cast<int64_t>(kernels::backward_scratch_bytes(batch));
  const at::Tensor scratch = at::empty({scratch_bytes}, q.options().dtype(at::kByte));
  C10_CUDA_CHECK(kernels::launch_backward({.schedule = planned.schedule,
                                           .q = packed(q),
                                           .k = packed(k),
                                           .v = packed(v),
                                           .dout = packed(dout),
                                           .scale = static_cast<float>(arguments.scale),
                                           .out = out.const_data_ptr(),
                                           .delta = delta.const_data_ptr(),
                                           .lse_global = lse_global.const_data_ptr<float>(),
                                           .lse_local = lse_local.const_data_ptr<float>(),
                                           .scratch = scratch.mutable_data_ptr(),
                                           .dq = dq.mutable_data_ptr(),
                                           .dk = dk.mutable_data_ptr(),
                                           .dv = dv.mutable_data_ptr(),
                                           .dgate = dgate.mutable_data_ptr<float>(),
                                           .deterministic = at::globalContext().deterministicAlgorithms()},
                                          stream));
  kernels::PoisonParams poison = {planned.schedule.state, {}, {}};
  int n = 0;
  for (const at::Tensor& gradient : {dq, dk, dv, dgate}) {
    poison.data[n] = gradient.mutable_data_ptr();
    poison.bytes[n++] = static_cast<int64_t>(gradient.nbytes());
  }
  C10_CUDA_CHECK(kernels::launch_poison(poison, stream));
  return {dq, dk, dv, dgate};
}

std::tuple<at::Tensor, at::Tensor> masked_forward(const MaskedArguments& arguments) {
  const c10::OptionalDeviceGuard guard(arguments.q.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const at::Tensor q = addressable(arguments.q), k = addressable(arguments.k), v = addressable(arguments.v);
  const at::Tensor is_global = arguments.is_global.contiguous();
  const at::Tensor cu_seqlens_q = arguments.cu_seqlens_q.contiguous(),
                   cu_seqlens_k = arguments.cu_seqlens_k.contiguous();
  const at::Tensor out = at::empty(q.sizes(), q.options()), lse = empty_statistics(q);

  kernels::Batch batch = make_batch(q, k, locality_of(arguments), cu_seqlens_q, cu_seqlens_k);
  batch.is_global = is_global.const_data_ptr<bool>();
  run_masked(batch, q, packed(k), packed(v), arguments.scale, out, lse, stream);
  return {out, lse};
}

}  // namespace prulong::hopper
