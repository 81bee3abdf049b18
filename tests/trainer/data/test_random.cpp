// SPDX-License-Identifier: MIT
#include "trainer/data/random.h"

#include <array>
#include <set>

#include "common/hash.h"
#include "tests/support/catch.h"

namespace prulong {
namespace {

TEST_CASE("the generator is splitmix64 and never changes") {
  CHECK(mix64(0x9E3779B97F4A7C15ull) == 0xE220A8397B1DCDAFull);  // published first output for seed 0
  CHECK(Random({1, 2}).next() != Random({2, 1}).next());
  CHECK(Random({1}).next() != Random({1, 0}).next());
  CHECK(Random({7, 8}).next() == Random({7, 8}).next());
}

TEST_CASE("below is uniform") {
  Random random({3});
  std::array<int, 7> counts{};
  for (int i = 0; i < 70000; ++i) ++counts[random.below(7)];
  for (const int count : counts) CHECK(count == Approx(10000).margin(500));
  CHECK(random.below(1) == 0);
}

TEST_CASE("shuffle keeps the elements and reaches every order") {
  std::set<std::vector<int>> orders;
  for (uint64_t i = 0; i < 200; ++i) {
    std::vector<int> items = {1, 2, 3};
    Random({i}).shuffle(items);
    orders.insert(items);
  }
  CHECK(orders.size() == 6);
}

TEST_CASE("a permutation maps its range onto itself, otherwise for another key") {
  for (const uint64_t size : {1, 2, 3, 7, 64, 65, 1000}) {
    const Permutation one(size, 1), two(size, 2);
    std::set<uint64_t> images;
    bool differs = false;
    for (uint64_t i = 0; i < size; ++i) {
      images.insert(one(i));
      differs |= one(i) != two(i);
    }
    CHECK(images.size() == size);
    CHECK(*images.rbegin() == size - 1);
    if (size >= 7) CHECK(differs);
  }
}

}  // namespace
}  // namespace prulong
