// SPDX-License-Identifier: MIT
#include "csrc/cpu/tile_plan.h"

#include <algorithm>
#include <array>

namespace prulong {

std::vector<KeyBlock> plan_key_blocks(Branch branch, Locality locality, Range positions, int max_keys) {
  const auto [begin, end] = positions;
  // Every place where what the tile sees can change.
  std::array<int, 6> cuts = {0, locality.sink, begin - locality.window + 1, end - locality.window, begin + 1, end};
  for (int& cut : cuts) cut = std::clamp(cut, 0, end);
  std::sort(cuts.begin(), cuts.end());

  std::vector<KeyBlock> blocks;
  int room = 0;
  for (size_t i = cuts.size() - 1; i > 0; --i) {
    Range keys = {cuts[i - 1], cuts[i]};
    if (keys.size() == 0 || !any_visible(branch, locality, positions, keys)) continue;
    const bool masked = needs_mask(branch, locality, positions, keys);
    while (keys.size() > 0) {
      if (room == 0) {
        blocks.emplace_back();
        room = max_keys;
      }
      const Range part = {std::max(keys.begin, keys.end - room), keys.end};
      blocks.back().push_back({part, masked});
      room -= part.size();
      keys.end = part.begin;
    }
  }
  return blocks;
}

int64_t count_keys(const std::vector<KeyBlock>& blocks) {
  int64_t count = 0;
  for (const KeyBlock& block : blocks) {
    for (const KeyRun& run : block) count += run.size();
  }
  return count;
}

}  // namespace prulong
