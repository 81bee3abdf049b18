// SPDX-License-Identifier: MIT
#include "csrc/hopper/planned_forward.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>

#include "csrc/gpu_tensor.h"
#include "csrc/hopper/combine.h"
#include "csrc/hopper/schedule_plan.h"

namespace prulong::hopper {

Planned plan(const kernels::Batch& batch, const kernels::ScheduleOptions& options, const at::Tensor& q,
             cudaStream_t stream) {
  const auto bytes = static_cast<int64_t>(kernels::schedule_bytes(batch, options));
  Planned planned = {at::empty({bytes}, q.options().dtype(at::kByte)), {}};
  planned.schedule = kernels::make_schedule(batch, options, planned.memory.mutable_data_ptr());
  C10_CUDA_CHECK(kernels::launch_plan(planned.schedule, stream));
  return planned;
}

kernels::PackedTensor packed(const at::Tensor& t) {
  return {element_type(t), t.const_data_ptr(), t.size(0), t.size(1), t.size(2), t.stride(0), t.stride(1)};
}

at::Tensor empty_statistics(const at::Tensor& q) {
  return at::empty({q.size(1), q.size(0)}, q.options().dtype(at::kFloat));
}

int processor_count(const at::Tensor& t) {
  int processors = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, t.get_device()));
  return processors;
}

void run_forward(const kernels::ForwardParams& params, cudaStream_t stream) {
  C10_CUDA_CHECK(kernels::launch_forward(params, stream));
  C10_CUDA_CHECK(kernels::launch_combine({.type = params.q.type,
                                          .schedule = params.schedule,
                                          .out = params.out,
                                          .delta = params.delta,
                                          .lse_global = params.lse_global,
                                          .lse_local = params.lse_local,
                                          .partial_out = params.partial_out,
                                          .partial_lse = params.partial_lse},
                                         stream));
}

void run_masked(const kernels::Batch& batch, const at::Tensor& q, const kernels::PackedTensor& k,
                const kernels::PackedTensor& v, double scale, const at::Tensor& out, const at::Tensor& lse,
                cudaStream_t stream) {
  const int query_rows = kernels::forward_query_rows(batch.head_dim);
  // No tile is ever cut where query tiles are so many: causal tiles of one head, the longest of which is less than
  // twice the mean.
  int processors = processor_count(q);
  if (int64_t{batch.q_tokens} / query_rows * batch.group() >= 8 * int64_t{processors}) processors = 0;
  const Planned planned = plan(batch, {.query_rows = query_rows, .processors = processors}, q, stream);
  at::Tensor partial_out, partial_lse;  // about 50 MB
  if (processors > 0) {
    const int64_t slots = kernels::partial_capacity(planned.schedule);
    partial_out = at::empty({slots, query_rows, q.size(2)}, q.options().dtype(at::kFloat));
    partial_lse = at::empty({slots, query_rows}, q.options().dtype(at::kFloat));
  }
  const auto floats = [](const at::Tensor& t) { return t.defined() ? t.mutable_data_ptr<float>() : nullptr; };
  run_forward({.schedule = planned.schedule,
               .q = packed(q),
               .k = k,
               .v = v,
               .scale = static_cast<float>(scale),
               .out = out.mutable_data_ptr(),
               .delta = nullptr,
               .lse_global = floats(lse),
               .lse_local = floats(lse),
               .partial_out = floats(partial_out),
               .partial_lse = floats(partial_lse)},
              stream);
}

}  // namespace prulong::hopper
