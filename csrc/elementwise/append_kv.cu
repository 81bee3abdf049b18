// SPDX-License-Identifier: MIT
#include "csrc/elementwise/append_kv.h"

namespace prulong::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 16384;

// The sequence with bounds[b] <= token < bounds[b + 1], if bounds rise from 0 past the token; else any.
__device__ int64_t sequence_of(const AppendParams& p, int64_t token) {
  int64_t low = 0, high = p.sequences;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (p.bounds[middle] <= token ? low : high) = middle;
  }
  return low;
}

// Where an entry of a token and head lies in the pages, as a row of [pages * page, dim]; -1: nowhere.
__device__ int64_t row_of(const AppendParams& p, int64_t token, int64_t head) {
  const int64_t sequence = sequence_of(p, token);
  const int64_t row = token - p.bounds[sequence], rows = int64_t{p.bounds[sequence + 1]} - p.bounds[sequence];
  const int64_t list = sequence * p.heads + head;
  const int64_t place = p.lengths[list] - rows + row;
  if (row < 0 || row >= rows || place < 0 || place >= p.table_pages * p.page) return -1;
  const int64_t page = p.page_table[list * p.table_pages + place / p.page];
  return page < 0 || page >= p.pages ? -1 : page * p.page + place % p.page;
}

// Rows as `row` units each; strides count units.
template <typename Unit>
__global__ void append_kv(AppendParams p, int64_t row) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; n < p.tokens * p.heads * row; n += step) {
    const int64_t i = n % row, head = n / row % p.heads, token = n / row / p.heads;
    const int64_t target = row_of(p, token, head);
    if (target < 0) continue;
    static_cast<Unit*>(p.k_pages)[target * row + i] =
        static_cast<const Unit*>(p.k)[token * p.k_strides[0] + head * p.k_strides[1] + i];
    static_cast<Unit*>(p.v_pages)[target * row + i] =
        static_cast<const Unit*>(p.v)[token * p.v_strides[0] + head * p.v_strides[1] + i];
  }
}

template <typename Unit>
cudaError_t launch(AppendParams params, cudaStream_t stream) {
  const int64_t elements = static_cast<int64_t>(sizeof(Unit)) / params.element_bytes;
  for (int64_t* strides : {params.k_strides, params.v_strides}) {
    strides[0] /= elements;
    strides[1] /= elements;
  }
  const int64_t row = params.dim / elements;
  const int64_t blocks = (params.tokens * params.heads * row + kThreads - 1) / kThreads;
  append_kv<Unit>
      <<<static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks), kThreads, 0, stream>>>(params, row);
  return cudaGetLastError();
}

// Can everything be read and written in units of 16 bytes?
bool in_vectors(const AppendParams& p) {
  const int64_t elements = 16 / p.element_bytes;
  for (const void* base : {p.k, p.v, static_cast<const void*>(p.k_pages), static_cast<const void*>(p.v_pages)}) {
    if (reinterpret_cast<uintptr_t>(base) % 16 != 0) return false;
  }
  for (const int64_t stride : {p.k_strides[0], p.k_strides[1], p.v_strides[0], p.v_strides[1], p.dim}) {
    if (stride % elements != 0) return false;
  }
  return true;
}

}  // namespace

cudaError_t launch_append_kv(const AppendParams& params, cudaStream_t stream) {
  if (params.element_bytes != 2 && params.element_bytes != 4) return cudaErrorInvalidValue;
  if (params.tokens * params.heads * params.dim == 0) return cudaSuccess;
  if (in_vectors(params)) return launch<uint4>(params, stream);
  return params.element_bytes == 2 ? launch<uint16_t>(params, stream) : launch<uint32_t>(params, stream);
}

}  // namespace prulong::kernels
