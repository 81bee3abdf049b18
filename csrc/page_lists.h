// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace prulong {

/// Where the entries of a cache's heads lie, read and checked on the host: what append_kv and paged_attention are told
/// on the device.
struct PageLists {
  at::Tensor table;           ///< [B, Hkv, N] int32, CPU, dense
  at::Tensor lengths;         ///< [B, Hkv] int32, CPU, dense; of sequences with new rows at least as many
  std::vector<int> q_bounds;  ///< [B + 1]: sequence b has the new rows [q_bounds[b], q_bounds[b + 1])

  int64_t sequences() const { return table.size(0); }
  int64_t heads() const { return table.size(1); }
  int rows(int64_t sequence) const { return q_bounds[sequence + 1] - q_bounds[sequence]; }
  int length(int64_t sequence, int64_t head) const {
    return lengths.const_data_ptr<int32_t>()[sequence * heads() + head];
  }
  /// The pages of one head's list.
  const int32_t* pages(int64_t sequence, int64_t head) const {
    return table.const_data_ptr<int32_t>() + (sequence * heads() + head) * table.size(2);
  }
};

}  // namespace prulong
