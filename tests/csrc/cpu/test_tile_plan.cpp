// SPDX-License-Identifier: MIT
#include "csrc/cpu/tile_plan.h"

#include <limits>
#include <map>

#include "tests/support/catch.h"

using namespace prulong;

TEST_CASE("key blocks cover each visible key once and mask exactly where needed") {
  for (const int64_t sink : {0, 1, 4, 50}) {
    for (const int64_t window : {int64_t{1}, int64_t{3}, int64_t{16}, std::numeric_limits<int64_t>::max()}) {
      for (const int64_t begin : {0, 1, 5, 16, 39}) {
        for (const int64_t rows : {1, 7, 16}) {
          for (const int64_t max_keys : {16, 24, 1000}) {
            const Locality locality{sink, window};
            const int64_t end = begin + rows;
            for (const Region region : {Region::kGlobal, Region::kLocal, Region::kComplement}) {
              std::map<int64_t, int> seen;
              const auto blocks = plan_key_blocks(region, locality, begin, end, max_keys);
              for (const KeyBlock& block : blocks) {
                int64_t keys = 0;
                for (const KeyRun& run : block) {
                  keys += run.end - run.begin;
                  bool any_hidden = false;
                  for (int64_t key = run.begin; key < run.end; ++key) {
                    ++seen[key];
                    for (int64_t query = begin; query < end; ++query) {
                      any_hidden = any_hidden || is_hidden(region, locality, query, key);
                    }
                  }
                  if (!run.masked) REQUIRE_FALSE(any_hidden);
                  if (run.masked) REQUIRE((run.end <= sink || run.begin >= sink));
                }
                REQUIRE((keys > 0 && keys <= max_keys));
              }
              for (int64_t key = 0; key < end; ++key) {
                bool visible = false;
                for (int64_t query = begin; query < end; ++query) {
                  visible = visible || !is_hidden(region, locality, query, key);
                }
                if (visible) REQUIRE(seen[key] == 1);
                REQUIRE(seen[key] <= 1);
              }
              if (region != Region::kComplement) {  // the running softmax starts with every query's own key
                for (int64_t query = begin; query < end; ++query) {
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
  const int64_t early = count_keys(plan_key_blocks(Region::kLocal, locality, 1024, 1088, 4096));
  const int64_t late = count_keys(plan_key_blocks(Region::kLocal, locality, 1'000'000, 1'000'064, 4096));
  CHECK(early == 16 + 128 + 63);
  CHECK(late == early);
}
