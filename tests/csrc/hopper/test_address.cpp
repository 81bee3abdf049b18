// SPDX-License-Identifier: MIT
#include "csrc/hopper/address.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "csrc/hopper/backward/backward_steps.h"
#include "csrc/hopper/tensor_map.h"
#include "tests/support/catch.h"

using namespace prulong::kernels;

namespace {

constexpr int64_t k31Bits = int64_t{1} << 31;

Batch batch_of(int64_t tokens, int64_t documents, int64_t query_heads, int64_t kv_heads, int head_dim) {
  Batch batch = {};
  batch.documents = static_cast<int>(documents);
  batch.q_tokens = batch.k_tokens = static_cast<int>(tokens);
  batch.query_heads = static_cast<int>(query_heads);
  batch.kv_heads = static_cast<int>(kv_heads);
  batch.head_dim = head_dim;
  batch.locality = {128, 1024};
  return batch;
}

/// Sizes at the limits: many tokens, many heads, many documents.
std::vector<Batch> largest_batches() {
  const std::vector<Batch> batches = {
      batch_of(kMaxTokens, 1, 63, 63, 128), batch_of(kMaxTokens, 1, 63, 9, 64), batch_of(1 << 25, 1, 1023, 1, 64),
      batch_of(1 << 18, 1 << 12, kMaxHeads, 1 << 13, 128), batch_of(1 << 24, (1 << 23) - (1 << 18), 64, 8, 128)};
  for (const Batch& b : batches) REQUIRE(within_limits(b.q_tokens, b.k_tokens, b.documents, b.query_heads));
  return batches;
}

int draw(int64_t end, std::mt19937& random) {
  return static_cast<int>(std::uniform_int_distribution<int64_t>(0, end - 1)(random));
}

}  // namespace

TEST_CASE("limits are held to one by one, far above 2^31 elements and without overflow") {
  CHECK(within_limits(1 << 20, 1 << 20, 1, 64));  // 2^33 elements of head_dim 128
  CHECK(within_limits(kMaxTokens, kMaxTokens, 1, 63));
  CHECK_FALSE(within_limits(kMaxTokens, kMaxTokens, 1, 64));
  CHECK_FALSE(within_limits(kMaxTokens + 1, 1, 1, 1));
  CHECK_FALSE(within_limits(1, kMaxTokens + 1, 1, 1));
  CHECK(within_limits(1, 1, 1, kMaxHeads));
  CHECK_FALSE(within_limits(1, 1, 1, kMaxHeads + 1));
  CHECK(within_limits(63, 63, kMaxTiles - 1, 1));
  CHECK_FALSE(within_limits(63, 63, kMaxTiles, 1));
  constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
  CHECK_FALSE(within_limits(kHuge, 1, 1, 1));
  CHECK_FALSE(within_limits(1, kHuge, 1, 1));
  CHECK_FALSE(within_limits(1, 1, kHuge, 1));
  CHECK_FALSE(within_limits(1, 1, 1, kHuge));
}

TEST_CASE("tensor maps hold tensors beyond 2^31 elements and refuse what the GPU cannot address") {
  const auto fits = [](int64_t tokens, int64_t heads, int64_t token_stride, int64_t head_stride) {
    return fits_tensor_map({ElementType::kBFloat16, nullptr, tokens, heads, 128, token_stride, head_stride});
  };
  CHECK(fits(kMaxTokens, 63, 63 * 128, 128));
  CHECK(fits(2, kMaxHeads, kMaxHeads * 128, 128));
  CHECK(fits(2, 2, (int64_t{1} << 39) - 8, 128));
  CHECK_FALSE(fits(2, 2, int64_t{1} << 39, 128));
  CHECK_FALSE(fits(2, 2, 128, int64_t{1} << 39));
  CHECK_FALSE(fits(k31Bits, 1, 128, 128));
}

TEST_CASE("rows, statistics and partial results beyond 2^31 elements lie where they should") {
  std::mt19937 random(1);
  for (const Batch& b : largest_batches()) {
    const int64_t tokens = b.q_tokens, heads = b.query_heads;
    CHECK(packed_row(b.q_tokens - 1, b.query_heads, b.query_heads - 1) == tokens * heads - 1);
    CHECK(tokens * heads * b.head_dim > k31Bits);
    CHECK(lse_place(b, b.query_heads - 1, b.q_tokens - 1) == tokens * heads - 1);
    for (int n = 0; n < 1000; ++n) {
      const int token = draw(tokens, random), head = draw(heads, random);
      const int64_t row = packed_row(token, b.query_heads, head), place = lse_place(b, head, token);
      REQUIRE((row / heads == token && row % heads == head));
      REQUIRE((place / tokens == head && place % tokens == token));
    }
  }
  CHECK(partial_row(1 << 25, 192, 191) == int64_t{192} * (1 << 25) + 191);
}

TEST_CASE("the backward's scratch arrays follow one another and fill their places beyond 2^31 elements") {
  std::mt19937 random(2);
  for (const Batch& b : largest_batches()) {
    const int rows = backward_tile_rows(b.head_dim), last_head = b.query_heads - 1;
    const int tiles = scratch_tiles(b, rows), last_tile = tiles - 1;
    const BackwardScratch scratch = backward_scratch(b);
    CAPTURE(b.q_tokens, b.query_heads, b.documents, scratch.size);
    CHECK(scratch.size > k31Bits);
    CHECK(statistics_offset(b, 1, last_head, last_tile, rows) + 2 * rows == scratch.dq_sums);
    CHECK(scratch.dq_sums + dq_offset(b, last_head, last_tile, rows) + rows * b.head_dim == scratch.dgate_parts);
    CHECK(scratch.dgate_parts + int64_t{b.query_heads} * tiles <= scratch.additions);
    CHECK(scratch.additions + additions_offset(b, last_head, last_tile, rows) + 2 <= scratch.size);
    CHECK(prepare_blocks(b) < k31Bits);  // CTAs of a launch
    CHECK(finish_blocks(b) < k31Bits);
    for (int n = 0; n < 1000; ++n) {
      const int head = draw(b.query_heads, random), tile = draw(tiles, random), set = draw(2, random);
      const int64_t statistics = statistics_offset(b, set, head, tile, rows) / (2 * rows);
      const int64_t sums = dq_offset(b, head, tile, rows) / (int64_t{rows} * b.head_dim);
      REQUIRE((statistics % tiles == tile && statistics / tiles == int64_t{set} * b.query_heads + head));
      REQUIRE((sums % tiles == tile && sums / tiles == head));
      REQUIRE(additions_offset(b, head, tile, rows) == 2 * sums);
    }
  }
}

TEST_CASE("items are counted and found in 32 bits up to the limits") {
  std::mt19937 random(3);
  for (const Batch& b : largest_batches()) {
    // All heads fractional: the most items there can be.
    const int64_t tiles = b.q_tokens / 128 + b.documents;
    ScheduleState state = {};
    state.long_heads = state.short_heads = b.kv_heads;
    state.query_tiles = state.long_tiles = state.key_tiles = static_cast<int>(tiles);
    Schedule schedule = {};
    schedule.batch = b;
    schedule.state = &state;
    CHECK(query_item_count(schedule) == 2 * tiles * b.query_heads);
    CHECK(key_item_count(schedule) == tiles * b.kv_heads);
    const int items = static_cast<int>(tiles * b.query_heads), group = b.group();
    for (const int section : {1, 2, b.kv_heads}) {
      const int last_tile = static_cast<int>(tiles) - 1;
      const detail::Place last = detail::place_of(items - 1, b.kv_heads, section, group, last_tile + 1);
      REQUIRE((last.head == b.kv_heads - 1 && last.member == group - 1 && last.tile == last_tile));
      for (int n = 0; n < 1000; ++n) {
        const int index = draw(items, random);
        const detail::Place p = detail::place_of(index, b.kv_heads, section, group, last_tile + 1);
        const int64_t before = int64_t{p.head} / section * section,
                      here = std::min(section, b.kv_heads - static_cast<int>(before));
        REQUIRE((before * group * tiles + p.tile * here * group + (p.head - before) * group + p.member == index));
      }
    }
  }
}

TEST_CASE("the longest documents have their positions, blocks and steps in 32 bits") {
  const Batch b = batch_of(kMaxTokens, 1, 63, 9, 64);
  const int tokens = b.q_tokens, rows = backward_tile_rows(64);
  for (const Locality locality : {Locality{128, 1024}, Locality{tokens, tokens}, Locality{0, tokens / 2}}) {
    Batch batch = b;
    batch.locality = locality;
    int64_t most = 0;
    for (const Branch branch : {Branch::kGlobal, Branch::kLocal, Branch::kComplement}) {
      const KeyBlocks blocks = key_blocks(branch, locality, {tokens - 128, tokens});
      CHECK(blocks.size() <= tokens / kKeyBlock);
      if (blocks.size() > 0) CHECK(blocks.at(0) < tokens / kKeyBlock);
      const Range seen = query_positions(branch, locality, {0, kKeyBlock}, tokens);
      CHECK((seen.begin >= 0 && seen.end <= tokens));
      most = std::max<int64_t>(most, seen.size());
    }
    const KeyItem item = {true, Branch::kGlobal, 0, {0, tokens, 0, tokens}, {0, kKeyBlock}};
    const BackwardItem steps = backward_item(batch, item, rows);
    CHECK(steps.steps >= most / rows * batch.group());
    CHECK(steps.steps == int64_t{batch.group()} * (steps.tiles[0].size() + steps.tiles[1].size()));
  }
}

TEST_CASE("steps are shared out to pieces without gaps, however many there are") {
  for (const int count : {0, 1, 7, 128, 1 << 22, std::numeric_limits<int>::max()}) {
    for (const int shares : {1, 2, 3, 397, 1 << 20}) {
      int64_t end = 0;
      bool even = true;
      for (int share = 0; share < shares; ++share) {
        const Range range = detail::share_of(count, share, shares);
        even = even && range.begin == end && (range.size() == count / shares || range.size() - 1 == count / shares);
        end = range.end;
      }
      CAPTURE(count, shares);
      CHECK(even);
      CHECK(end == count);
    }
  }
}
