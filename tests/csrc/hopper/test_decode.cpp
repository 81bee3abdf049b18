// SPDX-License-Identifier: MIT
#include <algorithm>
#include <limits>
#include <map>
#include <set>

#include "csrc/hopper/decode/decode_kernel.h"
#include "tests/csrc/hopper/paged_cache.h"
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
emulation::Counters decode_once(PagedCache& cache, Scratch& scratch, uint64_t seed) {
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
  const emulation::LaunchOptions launch = {params.processors, Shape::kThreads, Shape::kSharedBytes, seed};
  const emulation::Counters counters = emulate(launch, memory, [&] { decode::run<Shape>(arguments); });
  CHECK(std::count(scratch.arrivals.begin(), scratch.arrivals.end(), 0) == params.processors);
  return counters;
}

template <class Shape>
void check(const PagedExample& example, int processors, int seeds = emulation_seeds(2)) {
  for (int seed = 1; seed <= seeds; ++seed) {
    CAPTURE(seed, processors, Shape::kHeadDim);
    PagedCache cache(example, Shape::kType, Shape::kHeadDim, static_cast<uint64_t>(seed));
    Scratch scratch(processors, Shape::kHeadDim);
    decode_once<Shape>(cache, scratch, static_cast<uint64_t>(seed));
    cache.check();
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
