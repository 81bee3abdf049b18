// SPDX-License-Identifier: MIT
#include "csrc/cpu/tile_plan.h"

#include <algorithm>
#include <limits>
#include <map>

#include "tests/support/catch.h"

using namespace prulong;

TEST_CASE("key blocks cover each visible key once and mask exactly where needed") {
  for (const int sink : {0, 1, 4, 50}) {
    for (const int64_t window : {int64_t{1}, int64_t{3}, int64_t{16}, std::numeric_limits<int64_t>::max()}) {
      for (const int begin : {0, 1, 5, 16, 39}) {
        for (const int rows : {1, 7, 16}) {
          for (const int max_keys : {16, 24, 1000}) {
            const Locality locality = bounded(sink, window, std::numeric_limits<int>::max());
            const int end = begin + rows;
            for (const Branch branch : {Branch::kGlobal, Branch::kLocal, Branch::kComplement}) {
              std::map<int, int> seen;
              const auto blocks = plan_key_blocks(branch, locality, {begin, end}, max_keys);
              for (const KeyBlock& block : blocks) {
                int keys = 0;
                for (const KeyRun& run : block) {
                  keys += run.size();
                  bool any_hidden = false;
                  for (int key = run.begin; key < run.end; ++key) {
                    ++seen[key];
                    for (int query = begin; query < end; ++query) {
                      any_hidden = any_hidden || !visible(branch, locality, query, key);
                    }
                  }
                  if (!run.masked) REQUIRE_FALSE(any_hidden);
                  if (run.masked) REQUIRE((run.end <= sink || run.begin >= sink));
                }
                REQUIRE((keys > 0 && keys <= max_keys));
              }
              for (int key = 0; key < end; ++key) {
                bool seen_by_any = false;
                for (int query = begin; query < end; ++query) {
                  seen_by_any = seen_by_any || visible(branch, locality, query, key);
                }
                if (seen_by_any) REQUIRE(seen[key] == 1);
                REQUIRE(seen[key] <= 1);
              }
              if (branch != Branch::kComplement) {  // the running softmax starts with every query's own key
                for (int query = begin; query < end; ++query) {
                  bool found = false;
                  for (const KeyRun& run : blocks.front()) found = found || (run.begin <= query && query < run.end);
                  REQUIRE(found);
                }
              }
            }
          }
        }
      }
    }
  }
}

TEST_CASE("the number of local keys does not grow with the document") {
  const Locality locality{16, 128};
  const int64_t early = count_keys(plan_key_blocks(Branch::kLocal, locality, {1024, 1088}, 4096));
  const int64_t late = count_keys(plan_key_blocks(Branch::kLocal, locality, {1'000'000, 1'000'064}, 4096));
  CHECK(early == 16 + 128 + 63);
  CHECK(late == early);
}

TEST_CASE("sinks and windows of any size are those of all keys at most") {
  constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
  constexpr int kMost = std::numeric_limits<int>::max();
  for (const int64_t k_tokens : {int64_t{0}, int64_t{1}, int64_t{100}, int64_t{kMost}}) {
    const Locality locality = bounded(kHuge, kHuge, k_tokens);
    CHECK(locality.sink == std::max<int64_t>(k_tokens, 1));
    CHECK(locality.window == std::max<int64_t>(k_tokens, 1));
  }
  CHECK(bounded(3, 7, 100).sink == 3);
  CHECK(bounded(3, 7, 100).window == 7);
  CHECK(bounded(0, 7, 5).window == 5);
  // At the last position that a document can have.
  for (const Locality locality : {Locality{0, kMost}, Locality{kMost, 1}, Locality{1 << 30, 1 << 30}}) {
    CHECK(count_keys(plan_key_blocks(Branch::kLocal, locality, {kMost - 64, kMost}, kMost)) >= (1 << 30));
    CHECK(plan_key_blocks(Branch::kComplement, locality, {kMost - 64, kMost}, kMost).empty());
  }
}
