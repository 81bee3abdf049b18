// SPDX-License-Identifier: MIT
#include "csrc/ops/append_kv.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <limits>

#include "csrc/cpu/paged_attention.h"
#include "csrc/elementwise/append_kv.h"
#include "csrc/ops/backend.h"
#include "csrc/ops/checks.h"
#include "csrc/ops/page_checks.h"

namespace prulong {
namespace {

constexpr const char* kOp = "append_kv";

PagedTensors paged_tensors(const AppendArguments& a) {
  return {a.k_pages, a.v_pages, a.page_table, a.lengths, a.cu_seqlens_q};
}

void check_arguments(const AppendArguments& a) {
  check_tokens(kOp, "k", a.k);
  check_tokens(kOp, "v", a.v);
  check_same(kOp, "v", a.v, "k", a.k);
  for (int64_t dim = 0; dim < 3; ++dim) {
    TORCH_CHECK(a.v.sym_size(dim) == a.k.sym_size(dim), kOp, ": v must have k's shape ", a.k.sym_sizes(), ", got ",
                a.v.sym_sizes());
  }
  check_paged(kOp, "k", a.k, paged_tensors(a));
  TORCH_CHECK(a.page_table.sym_size(1) == a.k.sym_size(1), kOp, ": page_table must have k's heads, ", a.k.sym_size(1),
              ", got ", a.page_table.sym_size(1));
}

PageLists read_lists(const AppendArguments& a) {
  return read_page_lists(kOp, paged_tensors(a), a.k.size(0), std::numeric_limits<int64_t>::max(), PagesUsed::kNewRows);
}

void run_cpu(const AppendArguments& a) {
  check_arguments(a);
  pages::append(read_lists(a), a);
}

void run_cuda(const AppendArguments& a) {
  check_arguments(a);
  if (checks_device_data()) read_lists(a);
  const c10::OptionalDeviceGuard guard(a.k.device());
  const at::Tensor table = a.page_table.contiguous(), lengths = a.lengths.contiguous(),
                   bounds = a.cu_seqlens_q.contiguous();
  C10_CUDA_CHECK(kernels::launch_append_kv({.tokens = a.k.size(0),
                                            .heads = a.k.size(1),
                                            .dim = a.k.size(2),
                                            .element_bytes = static_cast<int>(a.k.element_size()),
                                            .k = a.k.const_data_ptr(),
                                            .v = a.v.const_data_ptr(),
                                            .k_strides = {a.k.stride(0), a.k.stride(1)},
                                            .v_strides = {a.v.stride(0), a.v.stride(1)},
                                            .k_pages = a.k_pages.mutable_data_ptr(),
                                            .v_pages = a.v_pages.mutable_data_ptr(),
                                            .pages = a.k_pages.size(0),
                                            .page = a.k_pages.size(1),
                                            .page_table = table.const_data_ptr<int>(),
                                            .sequences = table.size(0),
                                            .table_pages = table.size(2),
                                            .lengths = lengths.const_data_ptr<int>(),
                                            .bounds = bounds.const_data_ptr<int>()},
                                           c10::cuda::getCurrentCUDAStream()));
}

// The schema's flat list (library.cpp) as a struct.
template <void (*kRun)(const AppendArguments&)>
void append_op(const at::Tensor& k, const at::Tensor& v, const at::Tensor& k_pages, const at::Tensor& v_pages,
               const at::Tensor& page_table, const at::Tensor& lengths, const at::Tensor& cu_seqlens_q) {
  kRun({k, v, k_pages, v_pages, page_table, lengths, cu_seqlens_q});
}

}  // namespace

void append_kv(const AppendArguments& arguments) {
  const auto& [k, v, k_pages, v_pages, page_table, lengths, cu_seqlens_q] = arguments;
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("prulong::append_kv", "").typed<decltype(append_op<run_cpu>)>();
  op.call(k, v, k_pages, v_pages, page_table, lengths, cu_seqlens_q);
}

TORCH_LIBRARY_IMPL(prulong, CPU, m) { m.impl("append_kv", TORCH_FN(append_op<run_cpu>)); }
TORCH_LIBRARY_IMPL(prulong, CUDA, m) { m.impl("append_kv", TORCH_FN(append_op<run_cuda>)); }
TORCH_LIBRARY_IMPL(prulong, Meta, m) { m.impl("append_kv", TORCH_FN(append_op<check_arguments>)); }

}  // namespace prulong
