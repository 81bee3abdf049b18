// SPDX-License-Identifier: MIT
#include <algorithm>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <utility>

#include "csrc/hopper/decode/decode_kernel.h"
#include "tests/csrc/hopper/paged_cache.h"
#include "tests/csrc/hopper/planted.h"
#include "tests/support/catch.h"

using namespace prulong::kernels;
using namespace prulong::kernels::tests;
namespace emulation = prulong::kernels::device::emulation;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

using BFloat16Dim128 = DecodeShape<ElementType::kBFloat16, 128>;
using Float16Dim128 = DecodeShape<ElementType::kFloat16, 128>;
using BFloat16Dim64 = DecodeShape<ElementType::kBFloat16, 64>;
using Float16Dim64 = DecodeShape<ElementType::kFloat16, 64>;

// The kernel's own memory, which outlives a launch. Partial results are NaN before each.
struct Scratch {
  std::vector<float> partial_out, partial_lse;
  std::vector<int> arrivals;

  Scratch(int processors, int head_dim) : arrivals(static_cast<size_t>(processors), 0) {
    partial_lse.assign(2 * arrivals.size() * kDecodeRows, kNan);
    partial_out.assign(partial_lse.size() * static_cast<size_t>(head_dim), kNan);
  }
};

template <class Shape>
emulation::Counters decode_once(PagedCache& cache, Scratch& scratch, uint64_t seed, planted::Omits omits = {}) {
  std::fill(scratch.partial_out.begin(), scratch.partial_out.end(), kNan);
  std::fill(scratch.partial_lse.begin(), scratch.partial_lse.end(), kNan);
  DecodeParams params = {};
  params.batch = cache.batch();
  params.type = Shape::kType;
  params.q = cache.q.data();
  params.k_pages = cache.k.data();
  params.v_pages = cache.v.data();
  params.scale = cache.scale();
  params.out = cache.out.data();
  params.lse = cache.lse.data();
  params.processors = static_cast<int>(scratch.arrivals.size());
  params.partial_out = scratch.partial_out.data();
  params.partial_lse = scratch.partial_lse.data();
  params.arrivals = scratch.arrivals.data();
  DecodeArguments arguments;
  REQUIRE(make_decode_arguments(params, &arguments) == nullptr);
  emulation::GlobalMemory memory;
  cache.register_in(memory);
  memory.add(scratch.partial_out, "partial_out");
  memory.add(scratch.partial_lse, "partial_lse");
  memory.add(scratch.arrivals, "arrivals");
  const emulation::LaunchOptions launch = {params.processors, Shape::kThreads, Shape::kSharedBytes, seed,
                                           std::move(omits)};
  return emulate(launch, memory, [&] { decode::run<Shape>(arguments); });
}

template <class Shape>
void check(const PagedExample& example, int processors, int seeds = emulation_seeds(2)) {
  for (int seed = 1; seed <= seeds; ++seed) {
    CAPTURE(seed, processors, Shape::kHeadDim);
    PagedCache cache(example, Shape::kType, Shape::kHeadDim, static_cast<uint64_t>(seed));
    Scratch scratch(processors, Shape::kHeadDim);
    decode_once<Shape>(cache, scratch, static_cast<uint64_t>(seed));
    cache.check();
    CHECK(std::count(scratch.arrivals.begin(), scratch.arrivals.end(), 0) == processors);
  }
}

// Sequences with other lengths in every head, one of them empty.
PagedExample ragged() {
  PagedExample example;
  example.group = 4;
  example.is_global = {1, 0, 1};
  example.q_lengths = {1, 0, 1, 1};
  example.lengths = {{900, 640, 1}, {300, 0, 77}, {129, 1, 128}, {5, 411, 256}};
  example.locality = {100, 130};
  return example;
}

}  // namespace

TEST_CASE("decoding matches the mathematics, whatever the number of CTAs", "[decode]") {
  for (const int processors : {1, 2, 3, 5}) check<BFloat16Dim128>(ragged(), processors);
  check<Float16Dim64>(ragged(), 3);
  check<Float16Dim128>(ragged(), 2);
  check<BFloat16Dim64>(ragged(), 40);  // more CTAs than there is work
}

TEST_CASE("decoding of several tokens, in large groups, matches the mathematics", "[decode]") {
  PagedExample example;
  example.is_global = {1, 0};
  example.locality = {3, 200};
  example.magnitude = 3;
  const std::vector<std::pair<int, int>> groups = {{1, 16}, {3, 16}, {4, 16}, {7, 9}, {8, 8}, {64, 1}};
  for (size_t n = 0; n < groups.size(); ++n) {
    const auto [group, tokens] = groups[n];
    example.group = group;
    example.q_lengths = {tokens, 2 - static_cast<int>(group == 64), 0};
    example.lengths = {{300, 390}, {tokens + 130, 2}, {0, 5}};
    if (n % 2 == 0) check<BFloat16Dim128>(example, 2, 1);
    if (n % 2 == 1) check<Float16Dim64>(example, 2, 1);
  }
}

TEST_CASE("decoding with windows and sinks of all sizes matches the mathematics", "[decode]") {
  PagedExample example;
  example.group = 2;
  example.is_global = {0};
  example.q_lengths = {3, 1};
  example.lengths = {{700}, {400}};
  for (const Locality locality :
       {Locality{0, 1}, Locality{700, 1}, Locality{1, 1000}, Locality{128, 128}, Locality{129, 2}}) {
    example.locality = locality;
    check<BFloat16Dim64>(example, 2, 1);
    check<Float16Dim128>(example, 3, 1);
  }
}

TEST_CASE("launches follow one another in the same memory", "[decode]") {
  Scratch scratch(4, 128);
  for (int seed = 1; seed <= 3; ++seed) {
    PagedExample example = ragged();
    for (std::vector<int>& of_heads : example.lengths)
      std::rotate(of_heads.begin(), of_heads.begin() + 1, of_heads.end());
    example.lengths[1] = {0, 0, 0};
    PagedCache cache(seed == 2 ? ragged() : example, ElementType::kBFloat16, 128, static_cast<uint64_t>(seed));
    decode_once<BFloat16Dim128>(cache, scratch, static_cast<uint64_t>(seed));
    cache.check();
  }
}

TEST_CASE("a CTA loads its share of the key blocks and no others", "[decode]") {
  PagedCache cache(ragged(), ElementType::kBFloat16, 128, 6);
  const Batch& batch = cache.batch();
  constexpr int kProcessors = 3, kPanels = BFloat16Dim128::kPanels;
  Scratch scratch(kProcessors, 128);
  const emulation::Counters counters = decode_once<BFloat16Dim128>(cache, scratch, 6);
  std::vector<emulation::BoxLoad> expected;
  int64_t blocks = 0;
  int units = 0;
  for (int n = 0; n < batch.documents * batch.kv_heads; ++n) units += decode::list_at(batch, n).cost();
  for (int cta = 0; cta < kProcessors; ++cta) {
    decode::Walk walk(batch, {units, kProcessors}, cta, 0, 0);
    for (decode::Piece piece; walk.next(&piece);) {
      for (int step = piece.steps.begin; step < piece.steps.end; ++step, ++blocks) {
        const int row = kKeyBlock * cache.page(piece.list.sequence, piece.list.kv_head, piece.list.blocks.at(step));
        for (int p = 0; p < kPanels; ++p) {
          expected.push_back({cta, cache.k.data(), 64 * p, row, 0});
          expected.push_back({cta, cache.v.data(), 64 * p, row, 0});
        }
      }
    }
  }
  std::vector<emulation::BoxLoad> loaded = counters.boxes;
  std::sort(loaded.begin(), loaded.end());
  std::sort(expected.begin(), expected.end());
  CHECK(loaded == expected);
  CHECK(counters.bytes_loaded == blocks * 2 * BFloat16Dim128::kTileBytes);
  // Per block and consumer 8 products along the head, of 64 keys, and 4 along those.
  CHECK(counters.products == std::map<int, int64_t>{{64, 16 * blocks}, {128, 8 * blocks}});
  CHECK(counters.bytes_stored == 0);
}

TEST_CASE("wrong data of a list make its rows NaN and are never followed", "[decode]") {
  const auto check_wrong = [](auto spoil, std::vector<std::array<int, 2>> wrong) {
    for (const int processors : {1, 4}) {
      PagedCache cache(ragged(), ElementType::kFloat16, 64, 7);
      spoil(cache);
      Scratch scratch(processors, 64);
      decode_once<Float16Dim64>(cache, scratch, 7);
      cache.check(wrong);
    }
  };
  check_wrong([](PagedCache& c) { c.length(0, 1) = 0; }, {{0, 1}});  // fewer entries than queries
  check_wrong([](PagedCache& c) { c.length(2, 2) = -1 << 30; }, {{2, 2}});
  check_wrong([](PagedCache& c) { c.length(2, 0) = 1 << 30; }, {{2, 0}});  // more than the table has places for
  check_wrong([](PagedCache& c) { c.page(0, 0, 3) = -1; }, {{0, 0}});
  check_wrong([](PagedCache& c) { c.page(3, 1, 3) = c.batch().paged.pool_pages; }, {{3, 1}});
  check_wrong([](PagedCache& c) { c.page(0, 2, 0) = 1 << 25; }, {{0, 2}});
}

TEST_CASE("queries that are not where they should be make all rows NaN", "[decode]") {
  const auto check_wrong = [](int bound, int value) {
    PagedCache cache(ragged(), ElementType::kBFloat16, 64, 8);
    cache.q_bound(bound) = value;
    Scratch scratch(3, 64);
    const emulation::Counters counters = decode_once<BFloat16Dim64>(cache, scratch, 8);
    CHECK(counters.bytes_loaded == 0);
    cache.check_all_wrong();
  };
  check_wrong(0, 1);
  check_wrong(0, -1);
  check_wrong(1, 2);  // more than the next
  check_wrong(1, 1 << 30);
  check_wrong(2, -(1 << 30));
  check_wrong(4, 2);
  PagedExample example;  // more rows than one tile has
  example.group = 5;
  example.q_lengths = {1, 13};
  example.lengths = {{100}, {300}};
  PagedCache cache(example, ElementType::kBFloat16, 64, 9);
  Scratch scratch(2, 64);
  decode_once<BFloat16Dim64>(cache, scratch, 9);
  cache.check_all_wrong();
}

TEST_CASE("whatever call the decode kernel leaves out is missed", "[decode]") {
  PagedExample example;
  example.group = 8;
  example.q_lengths = {1, 3};
  example.is_global = {1, 0};
  example.lengths = {{1300, 500}, {3, 700}};
  // Two launches in the same memory.
  const auto passes = [&](uint64_t seed, const planted::Omits& omits) {
    Scratch scratch(3, 128);
    for (int launch = 0; launch < 2; ++launch) {
      PagedCache cache(example, ElementType::kBFloat16, 128, 5);
      decode_once<BFloat16Dim128>(cache, scratch, seed, omits);
      if (!cache.errors().small()) return false;
    }
    return true;
  };
  CHECK(planted::check_every_call_is_missed(passes) > 20);
}

TEST_CASE("a wrong page shows in the result", "[decode]") {
  PagedCache cache(ragged(), ElementType::kBFloat16, 128, 5);
  cache.page(0, 0, 3) = cache.page(0, 0, 2);
  Scratch scratch(3, 128);
  decode_once<BFloat16Dim128>(cache, scratch, 5);
  CHECK(!cache.errors().small());
}

TEST_CASE("every list's key blocks are shared out once, evenly, in as many CTAs as there is work for", "[decode]") {
  std::mt19937 random(4);
  for (int trial = 0; trial < 60; ++trial) {
    PagedExample example;
    example.group = 1 + static_cast<int>(random() % 8);
    example.locality = {static_cast<int>(random() % 300), 1 + static_cast<int>(random() % 1500)};
    example.is_global.assign(1 + random() % 5, 0);
    for (int& flag : example.is_global) flag = static_cast<int>(random() % 2);
    for (size_t s = 0; s < 1 + random() % 6; ++s) {
      example.q_lengths.push_back(static_cast<int>(random() % static_cast<unsigned>(1 + kDecodeRows / example.group)));
      example.lengths.emplace_back();
      for (size_t h = 0; h < example.is_global.size(); ++h) {
        example.lengths.back().push_back(example.q_lengths.back() + static_cast<int>(random() % 3000));
      }
    }
    const PagedLists lists(example, 64, static_cast<uint64_t>(trial));
    const Batch& batch = lists.batch();
    const int count = batch.documents * batch.kv_heads;
    std::vector<int> begins = {0};
    int64_t blocks = 0;
    for (int n = 0; n < count; ++n) {
      begins.push_back(begins.back() + decode::list_at(batch, n).cost());
      if (decode::list_at(batch, n).tokens > 0) blocks += decode::list_at(batch, n).blocks.size();
    }
    for (const int processors : {1, 3, 7, 132}) {
      const decode::Row row = {begins.back(), processors};
      if (row.units == 0) continue;
      std::map<std::pair<int, int>, int> seen;    // (list, step)
      std::map<int, std::pair<int, int>> pieces;  // by list: how many there were, how many were promised
      std::set<int> slots;
      for (int cta = 0; cta < row.shares(); ++cta) {
        const int begin = row.begin(cta), units = row.begin(cta + 1) - begin;
        REQUIRE(units >= row.units / row.shares());
        REQUIRE(units <= row.units / row.shares() + 1);
        REQUIRE(row.owner(begin) == cta);
        REQUIRE(row.owner(begin + units - 1) == cta);
        const int list = static_cast<int>(std::upper_bound(begins.begin(), begins.end(), begin) - begins.begin()) - 1;
        decode::Walk walk(batch, row, cta, list, begins[static_cast<size_t>(list)]);
        for (decode::Piece piece; walk.next(&piece);) {
          const int index = piece.list.sequence * batch.kv_heads + piece.list.kv_head;
          for (int step = piece.steps.begin; step < piece.steps.end; ++step) ++seen[{index, step}];
          auto& [found, promised] = pieces[index];
          REQUIRE((found == 0 || promised == piece.pieces));
          REQUIRE(cta == piece.first_cta + found);
          promised = piece.pieces;
          if (piece.pieces > 1) REQUIRE(slots.insert(decode::partial_slot(piece, found)).second);
          ++found;
        }
      }
      for (const auto& [index, counts] : pieces) REQUIRE(counts.first == counts.second);
      for (const auto& [place, times] : seen) REQUIRE(times == 1);
      REQUIRE(static_cast<int64_t>(seen.size()) == blocks);
      REQUIRE((slots.empty() || *slots.rbegin() < 2 * processors));
    }
  }
}
