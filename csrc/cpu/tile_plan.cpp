// SPDX-License-Identifier: MIT
#include "csrc/cpu/tile_plan.h"

#include <algorithm>
#include <array>

namespace prulong {
namespace {

enum class Cover { kNone, kSome, kAll };

// The caller's ranges end at every place where the answer can change.
Cover classify(Region region, const Locality& locality, int64_t begin, int64_t end, const KeyRun& keys) {
  const bool causal = keys.end - 1 <= begin;
  const bool all_local = keys.end <= locality.sink || keys.begin >= end - locality.window;
  const bool none_local = keys.begin >= locality.sink && keys.end - 1 <= begin - locality.window;
  switch (region) {
    case Region::kGlobal:
      return causal ? Cover::kAll : Cover::kSome;
    case Region::kLocal:
      if (none_local) return Cover::kNone;
      return all_local && causal ? Cover::kAll : Cover::kSome;
    case Region::kComplement:
      if (all_local) return Cover::kNone;
      return none_local ? Cover::kAll : Cover::kSome;
  }
  return Cover::kSome;
}

}  // namespace

std::vector<KeyBlock> plan_key_blocks(Region region, const Locality& locality, int64_t begin, int64_t end,
                                      int64_t max_keys) {
  std::array<int64_t, 6> cuts = {0, locality.sink, begin - locality.window + 1, end - locality.window, begin + 1, end};
  for (int64_t& cut : cuts) cut = std::clamp<int64_t>(cut, 0, end);
  std::sort(cuts.begin(), cuts.end());

  std::vector<KeyBlock> blocks;
  int64_t room = 0;
  for (size_t i = cuts.size() - 1; i > 0; --i) {
    KeyRun keys{cuts[i - 1], cuts[i], false};
    if (keys.begin == keys.end) continue;
    const Cover cover = classify(region, locality, begin, end, keys);
    if (cover == Cover::kNone) continue;
    keys.masked = cover == Cover::kSome;
    while (keys.begin < keys.end) {
      if (room == 0) {
        blocks.emplace_back();
        room = max_keys;
      }
      const int64_t part_begin = std::max(keys.begin, keys.end - room);
      blocks.back().push_back({part_begin, keys.end, keys.masked});
      room -= keys.end - part_begin;
      keys.end = part_begin;
    }
  }
  return blocks;
}

int64_t count_keys(const std::vector<KeyBlock>& blocks) {
  int64_t count = 0;
  for (const KeyBlock& block : blocks) {
    for (const KeyRun& run : block) count += run.end - run.begin;
  }
  return count;
}

}  // namespace prulong
