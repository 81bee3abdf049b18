// SPDX-License-Identifier: MIT
#include <limits>
#include <random>

#include "csrc/hopper/combine_kernel.h"
#include "csrc/hopper/forward/forward_kernel.h"
#include "csrc/hopper/schedule_plan.h"
#include "tests/csrc/hopper/paged_cache.h"
#include "tests/csrc/hopper/planted.h"
#include "tests/support/catch.h"

using namespace prulong::kernels;
using namespace prulong::kernels::tests;
namespace emulation = prulong::kernels::device::emulation;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

using BFloat16Dim128 = ForwardShape<ElementType::kBFloat16, 128, true>;
using Float16Dim128 = ForwardShape<ElementType::kFloat16, 128, true>;
using BFloat16Dim64 = ForwardShape<ElementType::kBFloat16, 64, true>;
using Float16Dim64 = ForwardShape<ElementType::kFloat16, 64, true>;

struct Work {
  emulation::Counters counters;
  int64_t steps = 0, tiles = 0, split_items = 0;
};

// Plan, forward kernel and combine kernel.
template <class Shape>
Work attend(PagedCache& cache, int processors, uint64_t seed, planted::Omits omits = {}) {
  const Batch& batch = cache.batch();
  const ScheduleOptions options = {Shape::kQueryRows, false, processors};
  std::vector<uint32_t> plan(schedule_bytes(batch, options) / 4 + 4, 0xffffffffu);
  const Schedule schedule = make_schedule(batch, options, plan.data());
  plan_on_host(schedule);
  const size_t rows = static_cast<size_t>(partial_capacity(schedule)) * Shape::kQueryRows;
  std::vector<float> partial_out(rows * Shape::kHeadDim, kNan), partial_lse(rows, kNan);

  ForwardParams params = {};
  params.schedule = schedule;
  params.q = {Shape::kType,      cache.q.data(), batch.q_tokens,
              batch.query_heads, batch.head_dim, batch.query_heads * batch.head_dim,
              batch.head_dim};
  params.k = rows_of_pages(Shape::kType, cache.k.data(), batch.paged.pool_pages, batch.head_dim);
  params.v = rows_of_pages(Shape::kType, cache.v.data(), batch.paged.pool_pages, batch.head_dim);
  params.scale = cache.scale();
  params.out = cache.out.data();
  params.lse_global = params.lse_local = cache.lse.data();
  params.partial_out = processors > 0 ? partial_out.data() : nullptr;
  params.partial_lse = processors > 0 ? partial_lse.data() : nullptr;
  ForwardArguments arguments;
  REQUIRE(make_forward_arguments(params, &arguments) == nullptr);
  emulation::GlobalMemory memory;
  cache.register_in(memory);
  memory.add(partial_out, "partial_out");
  memory.add(partial_lse, "partial_lse");
  memory.add(schedule.state, sizeof(ScheduleState), "schedule");

  Work work;
  for (int i = 0; i < query_item_count(schedule); ++i) {
    const QueryItem item = query_item<true>(schedule, i);
    work.steps += item.steps.size();
    work.tiles += item.steps.size() > 0;
    work.split_items += item.partial >= 0;
  }
  work.counters = emulate({2, Shape::kThreads, Shape::kSharedBytes, seed, std::move(omits)}, memory,
                          [&] { forward::run<Shape>(arguments); });
  CombineParams combined = {};
  combined.type = Shape::kType;
  combined.schedule = schedule;
  combined.out = params.out;
  combined.lse_global = params.lse_global;
  combined.partial_out = params.partial_out;
  combined.partial_lse = params.partial_lse;
  emulate({3, combine::kThreads, 0, seed}, memory, [&] { combine::run<Shape::kType>(combined); });
  return work;
}

template <class Shape>
void check(const PagedExample& example, int processors = 0) {
  for (int seed = 1; seed <= emulation_seeds(2); ++seed) {
    CAPTURE(seed, Shape::kHeadDim);
    PagedCache cache(example, Shape::kType, Shape::kHeadDim, static_cast<uint64_t>(seed));
    const Work work = attend<Shape>(cache, processors, static_cast<uint64_t>(seed));
    CHECK((work.split_items > 0) == (processors > 0));
    cache.check();
  }
}

// Chunks over lists of other lengths in every head, one sequence without queries.
PagedExample chunks() {
  PagedExample example;
  example.group = 2;
  example.is_global = {1, 0};
  example.q_lengths = {200, 0, 1, 70};
  example.lengths = {{515, 330}, {100, 0}, {260, 1}, {70, 333}};
  example.locality = {60, 130};
  return example;
}

}  // namespace

TEST_CASE("chunks over a paged cache match the mathematics", "[paged]") {
  check<BFloat16Dim128>(chunks());
  check<Float16Dim64>(chunks());
  PagedExample example = chunks();
  example.locality = {0, 5000};  // more than there are keys
  check<Float16Dim128>(example);
  check<BFloat16Dim64>(example);
}

TEST_CASE("split keys of a paged cache add up, also where a head has fewer than the longest", "[paged]") {
  PagedExample example;
  example.is_global = {1, 0, 1};
  example.q_lengths = {100, 3};
  example.lengths = {{2500, 400, 300}, {40, 3, 2200}};
  check<BFloat16Dim128>(example, 8);
  check<Float16Dim64>(example, 8);
}

TEST_CASE("a paged item loads its tiles and no others", "[paged]") {
  const PagedExample example = chunks();
  PagedCache cache(example, ElementType::kBFloat16, 128, 3);
  const Work work = attend<BFloat16Dim128>(cache, 0, 3);
  constexpr int kPanels = BFloat16Dim128::kPanels;
  CHECK(work.counters.boxes_of(cache.k.data()) == kPanels * work.steps);
  CHECK(work.counters.boxes_of(cache.v.data()) == kPanels * work.steps);
  CHECK(work.counters.bytes_loaded ==
        work.tiles * BFloat16Dim128::kQueryBytes + 2 * work.steps * BFloat16Dim128::kKeyBytes);
}

TEST_CASE("whatever call the paged forward kernel leaves out is missed", "[paged]") {
  PagedExample example;
  example.is_global = {1, 0};
  example.q_lengths = {70, 130};
  example.lengths = {{700, 200}, {2200, 130}};
  const auto passes = [&](uint64_t seed, const planted::Omits& omits) {
    PagedCache cache(example, ElementType::kBFloat16, 128, 5);
    attend<BFloat16Dim128>(cache, 8, seed, omits);
    return cache.errors().small();
  };
  CHECK(planted::check_every_call_is_missed(passes) > 20);
}

TEST_CASE("wrong data make a chunk's outputs NaN and are never followed", "[paged]") {
  const auto check_wrong = [](auto spoil) {
    PagedCache cache(chunks(), ElementType::kBFloat16, 64, 5);
    spoil(cache);
    const Work work = attend<BFloat16Dim64>(cache, 0, 5);
    CHECK(work.counters.bytes_loaded == 0);
    cache.check_all_wrong();
  };
  check_wrong([](PagedCache& c) { c.length(0, 1) = 199; });      // fewer entries than queries
  check_wrong([](PagedCache& c) { c.length(3, 0) = 1 << 30; });  // more than the table has places for
  check_wrong([](PagedCache& c) { c.length(2, 0) = -5; });
  check_wrong([](PagedCache& c) { c.page(0, 0, 4) = -1; });
  check_wrong([](PagedCache& c) { c.page(3, 1, 2) = c.batch().paged.pool_pages; });
  check_wrong([](PagedCache& c) { c.q_bound(1) = 300; });
  check_wrong([](PagedCache& c) { c.q_bound(4) = 1 << 30; });
}
