// SPDX-License-Identifier: MIT
#include "common/hash.h"

#include <random>

#include "tests/support/catch.h"

using namespace prulong;

TEST_CASE("hash64 is XXH3 with its published values") {
  CHECK(hash64("") == 0x2D06800538D394C2ull);
  CHECK(hexadecimal(hash64("a")) == "e6c632b61e964e1f");
  CHECK(hexadecimal(0) == "0000000000000000");
}

TEST_CASE("Bytes that come in pieces have the hash of the whole, however they are cut") {
  std::mt19937 random(1);
  std::string bytes(70'000, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  for (int trial = 0; trial < 20; ++trial) {
    Hash64 hash;
    std::string_view rest = bytes;
    while (!rest.empty()) {
      const size_t count = std::min<size_t>(random() % 3000, rest.size());  // empty pieces too
      hash.add(rest.substr(0, count));
      rest.remove_prefix(count);
    }
    CHECK(hash.value() == hash64(bytes));
  }
  CHECK(Hash64().value() == hash64(""));
}
