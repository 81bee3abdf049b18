// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace prulong::kernels {

/// New rows of sequences into the pages of a cache, in one pass. Nothing is read on the host; what page table, lengths
/// or bounds place outside the pages is left out. Elements of 2 or 4 bytes.
struct AppendParams {
  int64_t tokens, heads, dim;  // of the new rows
  int element_bytes;           // 2 or 4
  const void *k, *v;           // [tokens, heads, dim], dense in the last dimension
  int64_t k_strides[2];        // elements from token to token and from head to head
  int64_t v_strides[2];
  void *k_pages, *v_pages;  // [pages, page, dim], dense
  int64_t pages, page;
  const int* page_table;  // [sequences, heads, table_pages], dense
  int64_t sequences, table_pages;
  const int* lengths;  // [sequences, heads], dense
  const int* bounds;   // [sequences + 1]
};
cudaError_t launch_append_kv(const AppendParams& params, cudaStream_t stream);

}  // namespace prulong::kernels
