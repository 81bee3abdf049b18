// SPDX-License-Identifier: MIT
#include "csrc/hopper/paged_attention.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <limits>
#include <map>
#include <mutex>
#include <utility>

#include "csrc/attention_spec.h"
#include "csrc/gpu_tensor.h"
#include "csrc/hopper/address.h"
#include "csrc/hopper/decode/decode.h"
#include "csrc/hopper/planned_forward.h"

namespace prulong::hopper {
namespace {

// Counters of the decode kernel, which every launch leaves at 0. Calls on different streams may run at the same time,
// so each stream has its own; so has every graph, which zeroes them once a replay.
at::Tensor find_arrivals(const at::Tensor& q, int processors, cudaStream_t stream) {
  struct Counters {
    unsigned long long capture = 0;
    at::Tensor values;
  };
  static auto& all = *new std::map<std::pair<int, cudaStream_t>, Counters>;  // never freed: it may outlive the driver
  static std::mutex mutex;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long capture = 0;
  C10_CUDA_CHECK(cudaStreamGetCaptureInfo(stream, &status, &capture));
  if (status != cudaStreamCaptureStatusActive) capture = 0;
  const std::lock_guard lock(mutex);
  Counters& counters = all[{q.get_device(), stream}];
  if (!counters.values.defined() || counters.capture != capture) {
    counters = {capture, at::zeros({processors}, q.options().dtype(at::kInt))};
  }
  return counters.values;
}

void run_decode(const kernels::Batch& batch, const at::Tensor& q, const PagedArguments& arguments,
                const at::Tensor& out, const at::Tensor& lse, cudaStream_t stream) {
  const int processors = processor_count(q);
  const at::TensorOptions floats = q.options().dtype(at::kFloat);
  const at::Tensor partial_out = at::empty({2 * processors, kernels::kDecodeRows, batch.head_dim}, floats);
  const at::Tensor partial_lse = at::empty({2 * processors, kernels::kDecodeRows}, floats);
  const at::Tensor arrivals = find_arrivals(q, processors, stream);
  C10_CUDA_CHECK(kernels::launch_decode({.batch = batch,
                                         .type = element_type(q),
                                         .q = q.const_data_ptr(),
                                         .k_pages = arguments.k_pages.const_data_ptr(),
                                         .v_pages = arguments.v_pages.const_data_ptr(),
                                         .scale = static_cast<float>(arguments.scale),
                                         .out = out.mutable_data_ptr(),
                                         .lse = lse.mutable_data_ptr<float>(),
                                         .processors = processors,
                                         .partial_out = partial_out.mutable_data_ptr<float>(),
                                         .partial_lse = partial_lse.mutable_data_ptr<float>(),
                                         .arrivals = arrivals.mutable_data_ptr<int>()},
                                        stream));
}

}  // namespace

bool supports_paged(const PagedArguments& a) {
  const at::Tensor &q = a.q, &pages = a.k_pages, &table = a.page_table;
  const at::ScalarType dtype = q.scalar_type();
  if (!q.is_cuda() || (dtype != at::kHalf && dtype != at::kBFloat16)) return false;
  if ((q.size(2) != 64 && q.size(2) != 128) || pages.size(1) != kernels::kKeyBlock) return false;
  if (q.size(0) == 0 || pages.size(0) == 0 || table.numel() == 0) return false;
  // The upper bound keeps a scaled Softmax::kLowest finite.
  if (!(static_cast<float>(a.scale) > 0 && a.scale <= 128)) return false;
  const int64_t entries = table.size(2) * kernels::kKeyBlock;
  if (!kernels::within_limits(q.size(0), entries, table.size(0), q.size(1))) return false;
  // Key blocks of all lists, and rows of all pages, are counted in 32 bits.
  constexpr int64_t kMost = std::numeric_limits<int>::max();
  if (table.numel() + table.size(0) * table.size(1) > kMost) return false;
  const auto fits = [&](const at::Tensor& pool) {
    return kernels::fits_tensor_map(
        kernels::rows_of_pages(element_type(pool), pool.const_data_ptr(), pool.size(0), pool.size(2)));
  };
  return fits(a.k_pages) && fits(a.v_pages) && compute_capability(q) == 90;
}

std::tuple<at::Tensor, at::Tensor> paged_forward(const PagedArguments& arguments) {
  const c10::OptionalDeviceGuard guard(arguments.q.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const at::Tensor q = dense(arguments.q);
  const at::Tensor page_table = arguments.page_table.contiguous(), lengths = arguments.lengths.contiguous();
  const at::Tensor is_global = arguments.is_global.contiguous();
  const at::Tensor cu_seqlens_q = arguments.cu_seqlens_q.contiguous();
  const at::Tensor out = at::empty(q.sizes(), q.options()), lse = empty_statistics(q);

  kernels::Batch batch = {};
  batch.documents = static_cast<int>(page_table.size(0));
  batch.q_tokens = static_cast<int>(q.size(0));
  batch.k_tokens = static_cast<int>(page_table.size(2) * kernels::kKeyBlock);
  batch.query_heads = static_cast<int>(q.size(1));
  batch.kv_heads = static_cast<int>(page_table.size(1));
  batch.head_dim = static_cast<int>(q.size(2));
  batch.locality = bounded(arguments.sink, arguments.window, batch.k_tokens);
  batch.q_bounds = cu_seqlens_q.const_data_ptr<int>();
  batch.is_global = is_global.const_data_ptr<bool>();
  batch.paged = {page_table.const_data_ptr<int>(), lengths.const_data_ptr<int>(), static_cast<int>(page_table.size(2)),
                 static_cast<int>(arguments.k_pages.size(0))};

  if (arguments.max_seqlen_q.guard_int(__FILE__, __LINE__) * batch.group() <= kernels::kDecodeRows) {
    run_decode(batch, q, arguments, out, lse, stream);
  } else {
    const auto rows = [&](const at::Tensor& pool) {
      return kernels::rows_of_pages(element_type(pool), pool.const_data_ptr(), pool.size(0), pool.size(2));
    };
    run_masked(batch, q, rows(arguments.k_pages), rows(arguments.v_pages), arguments.scale, out, lse, stream);
  }
  return {out, lse};
}

}  // namespace prulong::hopper
