// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "csrc/tile.h"

namespace prulong {

using kernels::Branch;
using kernels::DocumentRows;
using kernels::HeadKind;
using kernels::Locality;
using kernels::Range;

/// Sink and window (in tokens, sink >= 0, window >= 1) for batches of at most `k_tokens` keys, in numbers whose
/// differences with positions cannot overflow: a sink or window of more than all keys is one of all keys. As many keys
/// as cu_seqlens can name at most: below 2^31.
inline Locality bounded(int64_t sink, int64_t window, int64_t k_tokens) {
  const int64_t most = std::clamp<int64_t>(k_tokens, 1, std::numeric_limits<int>::max());
  return {static_cast<int>(std::min(sink, most)), static_cast<int>(std::clamp<int64_t>(window, 1, most))};
}

/// What a call of attention computes, read and checked on the host.
struct AttentionSpec {
  std::vector<DocumentRows> documents;
  std::vector<HeadKind> heads;  ///< of the KV heads
  Locality locality;
  double scale;
};

}  // namespace prulong
