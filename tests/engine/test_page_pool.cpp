// SPDX-License-Identifier: MIT
#include "engine/page_pool.h"

#include "tests/support/catch.h"

using namespace prulong;

TEST_CASE("A set of numbers finds its lowest one") {
  NumberSet set(100000);
  set.insert(99999);
  set.insert(64);
  set.insert(4096);
  CHECK(set.lowest() == 64);
  set.erase(64);
  CHECK(set.lowest() == 4096);
  set.erase(4096);
  CHECK(set.lowest() == 99999);
  CHECK(set.size() == 1);
}
