// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace prulong {

/// Which keys of a document a query sees. For query position p and key position j <= p:
/// local keys have j < sink or j > p - window, the complement is the rest, global is both.
enum class Region { kGlobal, kLocal, kComplement };

/// Shape of the local region, in tokens: sink >= 0, window >= 1.
struct Locality {
  int64_t sink;
  int64_t window;
};

/// The same shape for batches of at most k_tokens keys, in numbers whose sums and differences with positions cannot
/// overflow: a sink or window of more than all keys is one of all keys.
inline Locality bounded(const Locality& locality, int64_t k_tokens) {
  return {std::min(locality.sink, k_tokens), std::clamp<int64_t>(locality.window, 1, std::max<int64_t>(k_tokens, 1))};
}

/// Key positions [begin, end). If `masked`, some of them are hidden from some queries of the tile; if not, all queries
/// of the tile see all of them.
struct KeyRun {
  int64_t begin;
  int64_t end;
  bool masked;
};

/// Key runs whose scores are computed together.
using KeyBlock = std::vector<KeyRun>;

/// Is key `key` hidden from query `query` in `region`? Positions count from the start of the document.
inline bool is_hidden(Region region, const Locality& locality, int64_t query, int64_t key) {
  if (key > query) return true;
  const bool local = key < locality.sink || key > query - locality.window;
  return (region == Region::kLocal && !local) || (region == Region::kComplement && local);
}

/// The keys that queries at positions [begin, end) see in `region`, as blocks of at most `max_keys` keys, from right to
/// left; keys that no query sees are left out. With max_keys >= end - begin the first block of kGlobal and kLocal holds
/// every query's own position, so a running softmax always starts from a finite maximum.
/// A masked run lies on one side of the sink's end.
std::vector<KeyBlock> plan_key_blocks(Region region, const Locality& locality, int64_t begin, int64_t end,
                                      int64_t max_keys);

/// Number of keys in all blocks together.
int64_t count_keys(const std::vector<KeyBlock>& blocks);

}  // namespace prulong
