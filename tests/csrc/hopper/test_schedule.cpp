// SPDX-License-Identifier: MIT
#include "csrc/hopper/schedule.h"

#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <tuple>

#include "tests/csrc/hopper/plans.h"
#include "tests/support/catch.h"

using namespace prulong::kernels;
using namespace prulong::kernels::tests;

namespace {

struct Case {
  std::vector<int> q_lengths, k_lengths;
  std::vector<float> gates;
  int group;
  Locality locality;
  ScheduleOptions options;
};

int cost_of(const QueryItem& item) {
  return (item.document.first_position() + item.rows.end + kKeyBlock - 1) / kKeyBlock;
}

Range positions_of(const QueryItem& item) {
  const int first = item.document.first_position();
  return {first + item.rows.begin, first + item.rows.end};
}

// How often each (query head, branch, row of the packed queries) takes each step of its key blocks.
void check_query_items(const Case& c, const HostPlan& plan) {
  std::map<std::tuple<int, Branch, int, int>, int> steps_taken;  // (query head, branch, first packed row, step)
  std::map<std::tuple<int, Branch>, int> rows_seen;
  std::set<int> slots;
  const auto items = plan.query_items();
  for (const QueryItem& item : items) {
    REQUIRE(item.query_head / c.group == item.kv_head);
    REQUIRE(item.rows.size() > 0);
    REQUIRE(item.rows.size() <= c.options.query_rows);
    REQUIRE(item.rows.end <= item.document.q_length);
    REQUIRE(item.document.q_length == c.q_lengths[static_cast<size_t>(item.document.index)]);
    REQUIRE(item.document.k_length == c.k_lengths[static_cast<size_t>(item.document.index)]);
    const int total = key_blocks(item.branch, c.locality, positions_of(item)).size();
    REQUIRE((item.steps.begin >= 0 && item.steps.end <= total));
    if (item.partial < 0) REQUIRE(item.steps.size() == total);
    if (item.partial >= 0) {
      REQUIRE(item.steps.size() > 0);
      REQUIRE(item.branch == Branch::kGlobal);
      REQUIRE(item.partial < partial_capacity(plan.schedule()));
      REQUIRE(slots.insert(item.partial).second);
    }
    const int first_row = item.document.q_begin + item.rows.begin;
    for (int step = item.steps.begin; step < item.steps.end; ++step) {
      REQUIRE(++steps_taken[{item.query_head, item.branch, first_row, step}] == 1);
    }
    if (item.steps.end == total) rows_seen[{item.query_head, item.branch}] += item.rows.size();
  }
  // Every row once in the branches of its head. Rows of a piece count with the piece that holds the last step.
  size_t branches = 0;
  const int tokens = plan.schedule().batch.q_tokens;
  for (size_t h = 0; h < c.gates.size(); ++h) {
    std::set<Branch> expected;
    if (c.gates[h] == 1) expected = {Branch::kGlobal};
    if (c.gates[h] == 0) expected = {Branch::kLocal};
    if (c.gates[h] > 0 && c.gates[h] < 1) expected = {Branch::kLocal, Branch::kComplement};
    for (const Branch branch : expected) {
      for (int i = 0; i < c.group && tokens > 0; ++i) {
        ++branches;
        REQUIRE(rows_seen[{static_cast<int>(h) * c.group + i, branch}] == tokens);
      }
    }
  }
  if (tokens > 0) REQUIRE(rows_seen.size() == branches);
  // Steps of each tile: as many as it has key blocks, no two alike (above).
  std::map<std::tuple<int, Branch, int>, int> step_counts;
  for (const auto& [key, count] : steps_taken) {
    ++step_counts[{std::get<0>(key), std::get<1>(key), std::get<2>(key)}];
  }
  for (const QueryItem& item : items) {
    const int total = key_blocks(item.branch, c.locality, positions_of(item)).size();
    const int first_row = item.document.q_begin + item.rows.begin;
    if (total > 0) REQUIRE(step_counts[{item.query_head, item.branch, first_row}] == total);
  }
}

// Long items before local ones, heads in sections, the longest first in each.
void check_query_order(const Case& c, const HostPlan& plan) {
  const auto items = plan.query_items();
  const Schedule& schedule = plan.schedule();
  const int per_head = schedule.state->long_tiles * c.group;
  bool local_seen = false;
  for (size_t i = 0; i < items.size(); ++i) {
    const bool local = items[i].branch == Branch::kLocal;
    REQUIRE((local || !local_seen));
    local_seen = local;
    if (i == 0 || local != (items[i - 1].branch == Branch::kLocal)) continue;
    const bool new_section = !local && static_cast<int>(i) % (schedule.q_section * per_head) == 0;
    const QueryItem &before = items[i - 1], &item = items[i];
    if (!new_section) {
      if (item.partial < 0 && before.partial < 0) REQUIRE(cost_of(item) <= cost_of(before));
      if (!local) REQUIRE((item.steps.size() <= before.steps.size() + 1 || item.branch != before.branch));
    }
    if (item.query_head % c.group != 0) REQUIRE(item.query_head == before.query_head + 1);
  }
}

void check_key_items(const Case& c, const HostPlan& plan) {
  std::map<int, std::vector<int>> times;  // KV head: how often each packed key is in an item
  const Schedule& schedule = plan.schedule();
  const auto items = plan.key_items();
  std::map<std::tuple<int, int>, int> last_block;
  for (size_t i = 0; i < items.size(); ++i) {
    const KeyItem& item = items[i];
    const float z = c.gates[static_cast<size_t>(item.kv_head)];
    REQUIRE(item.fractional == (z > 0 && z < 1));
    if (!item.fractional) REQUIRE(item.branch == (z == 1 ? Branch::kGlobal : Branch::kLocal));
    REQUIRE(item.keys.begin % kKeyBlock == 0);
    REQUIRE((item.keys.size() > 0 && item.keys.size() <= kKeyBlock && item.keys.end <= item.document.k_length));
    auto& seen = times[item.kv_head];
    seen.resize(static_cast<size_t>(schedule.batch.k_tokens));
    for (int key = item.keys.begin; key < item.keys.end; ++key) {
      ++seen[static_cast<size_t>(item.document.k_begin + key)];
    }
    // Blocks further left of the same head and document come before: who waits for them never waits in vain.
    const auto [last, first_time] = last_block.insert({{item.kv_head, item.document.index}, -kKeyBlock});
    REQUIRE(item.keys.begin == last->second + kKeyBlock);
    last->second = item.keys.begin;
    if (i == 0) continue;
    const bool local = z == 0, local_before = c.gates[static_cast<size_t>(items[i - 1].kv_head)] == 0;
    REQUIRE((local || !local_before));
    const bool new_section = !local && static_cast<int>(i) % (schedule.k_section * schedule.state->key_tiles) == 0;
    if (local == local_before && !new_section) {
      const auto cost = [](const KeyItem& k) { return (k.document.k_length - k.keys.begin + 127) / kKeyBlock; };
      REQUIRE(cost(item) <= cost(items[i - 1]));
    }
  }
  if (schedule.batch.k_tokens == 0) return;
  REQUIRE(times.size() == c.gates.size());
  for (const auto& [head, seen] : times) {
    REQUIRE(seen == std::vector<int>(static_cast<size_t>(schedule.batch.k_tokens), 1));
  }
}

const std::vector<std::vector<float>> kGates = {
    {0}, {1}, {0.5F}, {0, 0, 0}, {1, 1, 1}, {0.25F, 1e-6F, 0.5F}, {1, 0, 0.3F, 0, 1, 0.999F, 0}};

std::vector<std::vector<int>> document_lists() {
  return {{1},
          {127},
          {128},
          {129},
          {700},
          {0, 5, 0},
          {128, 128, 128},
          {1, 0, 300, 257, 2, 1000, 127},
          std::vector<int>(300, 1),
          std::vector<int>(40, 13)};
}

}  // namespace

TEST_CASE("items cover every head, query row and key once, the longest first") {
  for (const std::vector<int>& lengths : document_lists()) {
    for (const std::vector<float>& gates : kGates) {
      for (const int group : {1, 3}) {
        for (const int rows : {64, 128}) {
          const Case c = {lengths, lengths, gates, group, {4, 100}, {.query_rows = rows, .with_keys = true}};
          const HostPlan plan(c.q_lengths, c.k_lengths, c.gates, c.group, 128, c.locality, c.options);
          REQUIRE(plan.schedule().state->invalid == 0);
          REQUIRE(plan.schedule().state->next_query == 0);
          REQUIRE(plan.schedule().state->next_key == 0);
          REQUIRE_FALSE(plan.overrun());
          check_query_items(c, plan);
          check_query_order(c, plan);
          check_key_items(c, plan);
        }
      }
    }
  }
}

TEST_CASE("queries may be fewer than keys, and long tiles are cut where few heads are global") {
  const std::vector<std::vector<int>> q_lists = {{1}, {130, 0, 5}, {700}};
  const std::vector<std::vector<int>> k_lists = {{3000}, {130, 9, 4096}, {5000}};
  for (size_t n = 0; n < q_lists.size(); ++n) {
    for (const std::vector<float>& gates : std::vector<std::vector<float>>{{1}, {0, 0}, {0, 1, 0, 1}}) {
      for (const int processors : {0, 1, 3, 16, 1000}) {
        const Case c = {q_lists[n], k_lists[n], gates, 2, {4, 100}, {.processors = processors}};
        const HostPlan plan(c.q_lengths, c.k_lengths, c.gates, c.group, 64, c.locality, c.options);
        REQUIRE_FALSE(plan.overrun());
        check_query_items(c, plan);
        check_query_order(c, plan);
        REQUIRE(key_item_count(plan.schedule()) == 0);
      }
    }
  }
}

TEST_CASE("tiles are cut where few of them would leave multiprocessors idle, and only there") {
  constexpr int kProcessors = 132;
  struct Shape {
    int queries, keys, global_heads;
    bool cut;
  };
  for (const Shape& shape :
       std::vector<Shape>{{2048, 131072, 1, true},    // 16 tiles of equal length
                          {2048, 131072, 12, true},   // 192: half of the multiprocessors would get two
                          {8192, 131072, 12, false},  // 768: six rounds
                          {1, 131072, 3, true},       // three
                          {16384, 16384, 4, false},   // all lengths
                          {32768, 32768, 1, true},    // 256 tiles, the longest more than a share
                          {2048, 2048, 1, false}}) {  // too short for pieces
    std::vector<float> gates(static_cast<size_t>(shape.global_heads) + 3, 0);
    for (int h = 0; h < shape.global_heads; ++h) gates[static_cast<size_t>(h) + 1] = 1;
    const HostPlan plan({shape.queries}, {shape.keys}, gates, 1, 128, {128, 1024}, {.processors = kProcessors});
    int longest = 0, partial = 0;
    int64_t work = 0;
    for (const QueryItem& item : plan.query_items()) {
      if (item.branch != Branch::kGlobal) continue;
      longest = std::max(longest, item.steps.size());
      partial += item.partial >= 0;
      work += item.steps.size();
    }
    CAPTURE(shape.queries, shape.keys, shape.global_heads);
    CHECK((partial > 0) == shape.cut);
    CHECK(partial <= partial_capacity(plan.schedule()));
    if (shape.cut) CHECK(longest <= std::max<int64_t>(work / (3 * kProcessors) + 1, 16));
  }
}

TEST_CASE("heads are taken in sections whose keys and values fit the cache") {
  const std::vector<int> lengths = {32768};
  const HostPlan plan(lengths, lengths, std::vector<float>(8, 1), 4, 128, {128, 1024}, {.with_keys = true});
  CHECK(plan.schedule().q_section == 2);  // 2 x 16 MiB
  CHECK(plan.schedule().k_section == 1);
  const auto items = plan.query_items();
  const size_t per_section = 256 * 2 * 4;
  for (size_t i = 0; i < items.size(); ++i) {
    REQUIRE(items[i].kv_head / 2 == static_cast<int>(i / per_section));
    REQUIRE(items[i].rows.begin / 128 == 255 - static_cast<int>(i % per_section) / 8);
  }
}

// Taken in order by whoever is free, key items end at about the same time, though a short batch's heads are many times
// what the cache holds.
TEST_CASE("key items of short batches share out evenly") {
  for (const int tokens : {4096, 8192, 16384}) {
    const std::vector<int> lengths = {tokens};
    const HostPlan plan(lengths, lengths, std::vector<float>(8, 1), 4, 128, {128, 1024}, {.with_keys = true});
    constexpr int kProcessors = 132;
    std::vector<int64_t> busy(kProcessors, 0);
    int64_t work = 0;
    for (const KeyItem& item : plan.key_items()) {
      const int64_t cost = tokens - item.keys.begin;
      *std::min_element(busy.begin(), busy.end()) += cost;
      work += cost;
    }
    CAPTURE(tokens, plan.schedule().k_section);
    CHECK(double(*std::max_element(busy.begin(), busy.end())) <= 1.02 * double(work) / kProcessors);
  }
}

TEST_CASE("wrong data make an empty plan, wrong gates a fractional head") {
  const std::vector<int> lengths = {100, 200, 50};
  for (const auto& [place, value] : std::vector<std::pair<size_t, int>>{{0, 1},
                                                                        {0, -7},
                                                                        {1, 301},
                                                                        {1, -1},
                                                                        {2, 50},
                                                                        {3, 349},
                                                                        {3, 351},
                                                                        {1, std::numeric_limits<int>::min()},
                                                                        {2, std::numeric_limits<int>::max()}}) {
    HostPlan plan(lengths, lengths, {0, 1, 0.5F}, 1, 64, {4, 100}, {.with_keys = true});
    REQUIRE(query_item_count(plan.schedule()) > 0);
    const Batch batch = plan.schedule().batch;
    plan.q_bounds()[place] = value;
    plan.replan(batch, {.with_keys = true});
    CHECK(plan.schedule().state->invalid == 1);
    CHECK(query_item_count(plan.schedule()) == 0);
    CHECK(key_item_count(plan.schedule()) == 0);
  }
  const HostPlan too_many_queries({5}, {4}, {1}, 1, 64, {4, 100}, {});
  CHECK(too_many_queries.schedule().state->invalid == 1);

  for (const float wrong : {-0.5F, 1.5F, std::nanf("")}) {
    const HostPlan plan(lengths, lengths, {wrong, 1}, 1, 64, {4, 100}, {.with_keys = true});
    CHECK(plan.schedule().state->short_heads == 1);
    CHECK(plan.schedule().state->long_heads == 2);
    CHECK(plan.key_items()[0].fractional);
  }
}

TEST_CASE("nothing to do is no item") {
  for (const std::vector<int>& lengths : std::vector<std::vector<int>>{{}, {0}, {0, 0, 0}}) {
    const HostPlan plan(lengths, lengths, {0, 1, 0.5F}, 2, 64, {4, 100}, {.with_keys = true});
    CHECK(plan.schedule().state->invalid == 0);
    CHECK(query_item_count(plan.schedule()) == 0);
    CHECK(key_item_count(plan.schedule()) == 0);
    CHECK_FALSE(plan.overrun());
  }
}
