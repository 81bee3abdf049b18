// SPDX-License-Identifier: MIT
#include "csrc/tile.h"

#include <limits>
#include <random>
#include <set>
#include <vector>

#include "tests/support/catch.h"

using namespace prulong::kernels;

namespace {

constexpr Branch kBranches[] = {Branch::kGlobal, Branch::kLocal, Branch::kComplement};

// The blocks that hold a visible pair, pair by pair.
std::set<int> visible_blocks(Branch branch, Locality locality, Range positions) {
  std::set<int> blocks;
  for (int i = positions.begin; i < positions.end; ++i) {
    for (int j = 0; j <= i; ++j) {
      if (visible(branch, locality, i, j)) blocks.insert(j / kKeyBlock);
    }
  }
  return blocks;
}

bool any_invisible(Branch branch, Locality locality, Range positions, Range keys) {
  for (int i = positions.begin; i < positions.end; ++i) {
    for (int j = keys.begin; j < keys.end; ++j) {
      if (!visible(branch, locality, i, j)) return true;
    }
  }
  return false;
}

// Sinks and windows around multiples of the block, and within the lengths below.
std::vector<Locality> localities() {
  std::vector<Locality> all;
  for (const int sink : {0, 1, 4, 127, 128, 129, 200, 256, 1 << 29}) {
    for (const int window : {1, 2, 100, 127, 128, 129, 255, 256, 257, 1 << 29}) all.push_back({sink, window});
  }
  return all;
}

void check_tile(Branch branch, Locality locality, Range positions) {
  const KeyBlocks blocks = key_blocks(branch, locality, positions);
  const std::set<int> expected = visible_blocks(branch, locality, positions);
  std::set<int> visited;
  int before = positions.end / kKeyBlock + 1;
  for (int step = 0; step < blocks.size(); ++step) {
    const int block = blocks.at(step);
    REQUIRE(block < before);  // right to left, none twice
    before = block;
    visited.insert(block);
    const Range keys = {block * kKeyBlock, (block + 1) * kKeyBlock};
    REQUIRE(needs_mask(branch, locality, positions, keys) == any_invisible(branch, locality, positions, keys));
  }
  REQUIRE(visited == expected);
}

}  // namespace

TEST_CASE("a key is local, or in the complement, or later than the query") {
  for (const Locality locality : localities()) {
    int wrong = 0;
    for (int i = 0; i < 300; ++i) {
      for (int j = 0; j < 310; ++j) {
        const bool local = visible(Branch::kLocal, locality, i, j);
        const bool complement = visible(Branch::kComplement, locality, i, j);
        const bool in_reach = j < locality.sink || i - j < locality.window;
        wrong += visible(Branch::kGlobal, locality, i, j) != (j <= i);
        wrong += local != (j <= i && in_reach);
        wrong += complement != (j <= i && !in_reach);
      }
    }
    REQUIRE(wrong == 0);
  }
}

TEST_CASE("query tiles visit exactly the blocks with a visible key, right to left, and mask exactly where needed") {
  for (const Locality locality : localities()) {
    for (const Branch branch : kBranches) {
      for (const int begin : {0, 1, 64, 127, 128, 129, 300, 384}) {
        for (const int rows : {1, 64, 128, 192}) check_tile(branch, locality, {begin, begin + rows});
      }
    }
  }
}

TEST_CASE("query tiles of random size and place") {
  std::mt19937 random(3);
  const auto draw = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  for (int n = 0; n < 1000; ++n) {
    const Locality locality = {draw(0, 600), draw(1, 600)};
    const int begin = draw(0, 900);
    check_tile(kBranches[n % 3], locality, {begin, begin + draw(1, 192)});
  }
}

TEST_CASE("tiles of any shape need a mask exactly where a pair is invisible") {
  std::mt19937 random(4);
  const auto draw = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  int needed = 0;
  for (int n = 0; n < 6000; ++n) {
    const Branch branch = kBranches[n % 3];
    const Locality locality = {draw(0, 100), draw(1, 100)};
    const Range positions = {draw(0, 150), 0}, keys = {draw(0, 150), 0};
    const Range p = {positions.begin, positions.begin + draw(1, 60)}, k = {keys.begin, keys.begin + draw(1, 60)};
    const bool expected = any_invisible(branch, locality, p, k);
    needed += expected;
    // A tile without any visible pair is never visited; a mask there costs nothing.
    bool sees = false;
    for (int i = p.begin; i < p.end && !sees; ++i) {
      for (int j = k.begin; j < k.end && !sees; ++j) sees = visible(branch, locality, i, j);
    }
    REQUIRE(any_visible(branch, locality, p, k) == sees);
    if (sees) REQUIRE(needs_mask(branch, locality, p, k) == expected);
    if (expected) REQUIRE(needs_mask(branch, locality, p, k));
  }
  CHECK(needed > 500);
  CHECK(needed < 5500);
}

TEST_CASE("key blocks are given to every query that sees one of their keys") {
  for (const Locality locality : localities()) {
    for (const Branch branch : kBranches) {
      for (const int k_length : {1, 128, 129, 257, 500}) {
        for (int block = 0; block * kKeyBlock < k_length; ++block) {
          const Range keys = {block * kKeyBlock, std::min((block + 1) * kKeyBlock, k_length)};
          const Range seen = query_positions(branch, locality, keys, k_length);
          int first = k_length, last = -1;
          for (int i = 0; i < k_length; ++i) {
            for (int j = keys.begin; j < keys.end; ++j) {
              if (!visible(branch, locality, i, j)) continue;
              first = std::min(first, i);
              last = i;
            }
          }
          if (last < 0) {
            REQUIRE(seen.size() == 0);
          } else {
            // As tight as one range can be, and within the document.
            REQUIRE(seen.begin == first);
            REQUIRE(seen.end == last + 1);
          }
        }
      }
    }
  }
}

TEST_CASE("positions near the largest do not overflow") {
  constexpr int kFar = 1 << 30, kMost = std::numeric_limits<int>::max();
  const Locality locality = {128, 1024};
  const Range positions = {kFar - 128, kFar};
  CHECK(key_blocks(Branch::kGlobal, locality, positions).size() == kFar / kKeyBlock);
  CHECK(key_blocks(Branch::kLocal, locality, positions).size() == 10);
  CHECK(key_blocks(Branch::kComplement, locality, positions).size() == kFar / kKeyBlock - 8 - 1);
  for (const Branch branch : kBranches) {
    CHECK(any_visible(branch, {0, kMost}, {kMost - 1, kMost}, {0, 1}) == (branch != Branch::kComplement));
    CHECK(any_visible(branch, {0, 1}, {kMost - 1, kMost}, {0, 1}) == (branch != Branch::kLocal));
    CHECK(needs_mask(branch, {kMost, kMost}, {0, 1}, {kMost - 1, kMost}));
  }
  CHECK(query_positions(Branch::kLocal, {1 << 29, (1 << 30) - 1}, {kFar - 128, kFar}, kFar).end == kFar);
  CHECK(query_positions(Branch::kComplement, {0, (1 << 30) - 1}, {kFar - 128, kFar}, kFar).size() == 0);
}
