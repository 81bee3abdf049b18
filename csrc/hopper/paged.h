// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "csrc/tile.h"

namespace prulong::kernels {

/// Where the keys and values of a cache lie whose KV heads keep a list of entries each: in pages of kKeyBlock entries,
/// [pool_pages, kKeyBlock, head_dim] of K and of V, that belong to one head. Lengths and tables lie on the device.
struct PagedKeys {
  const int* page_table;  // [sequences, kv_heads, table_pages]: entry e lies in page e / kKeyBlock of its head's row
  const int* lengths;     // [sequences, kv_heads]: entries, those of the sequence's queries included
  int table_pages, pool_pages;

  PRULONG_HOST_DEVICE const int* row(int head_of_all) const { return page_table + int64_t{head_of_all} * table_pages; }
  /// Can a head with `queries` queries have so many entries?
  PRULONG_HOST_DEVICE bool fits(int length, int queries) const {
    return length >= queries && length <= int64_t{table_pages} * kKeyBlock;
  }
  PRULONG_HOST_DEVICE bool in_pool(int page) const { return page >= 0 && page < pool_pages; }
};

}  // namespace prulong::kernels
