// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <vector>

#include "csrc/attention_spec.h"

namespace prulong {

/// Key positions. If `masked`, some of them are hidden from some queries of the tile; if not, all queries of the tile
/// see all of them.
struct KeyRun : Range {
  bool masked = false;
};

/// Key runs whose scores are computed together.
using KeyBlock = std::vector<KeyRun>;

/// The keys that the queries at `positions` see in a branch, as blocks of at most `max_keys` keys, from right to left;
/// keys that no query sees are left out. With max_keys >= positions.size() the first block of kGlobal and kLocal holds
/// every query's own position, so a running softmax always starts from a finite maximum.
/// A masked run lies on one side of the sink's end.
std::vector<KeyBlock> plan_key_blocks(Branch branch, Locality locality, Range positions, int max_keys);

/// Number of keys in all blocks together.
int64_t count_keys(const std::vector<KeyBlock>& blocks);

}  // namespace prulong
