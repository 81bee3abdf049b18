// SPDX-License-Identifier: MIT
#include "csrc/hopper/combine_kernel.h"

#include <limits>
#include <random>

#include "tests/csrc/hopper/plans.h"
#include "tests/emulation/emulator.h"
#include "tests/support/catch.h"

using namespace prulong::kernels;
using namespace prulong::kernels::tests;
namespace emulation = prulong::kernels::device::emulation;

namespace {

constexpr uint16_t kNanBits = 0x7fff;

// What a forward kernel might have left, and what combining makes of it.
struct Memory {
  std::vector<uint16_t> out, delta;
  std::vector<float> lse_global, lse_local, partial_out, partial_lse;

  Memory(const Batch& batch, ElementType type, uint64_t seed) : random_(seed), type_(type) {
    const size_t rows = static_cast<size_t>(batch.q_tokens) * static_cast<size_t>(batch.query_heads);
    out = elements(rows * static_cast<size_t>(batch.head_dim));
    delta = elements(out.size());
    lse_global = floats(rows, 4);
    lse_local = floats(rows, 4);
    for (size_t i = 0; i < rows; i += 7) lse_global[i] = -std::numeric_limits<float>::infinity();
  }
  std::vector<uint16_t> elements(size_t count) {
    std::vector<uint16_t> values;
    for (const float x : floats(count, 1)) values.push_back(emulation::round_element(type_, x));
    return values;
  }
  std::vector<float> floats(size_t count, float spread) {
    std::normal_distribution<float> normal(0, spread);
    std::vector<float> values(count);
    for (float& x : values) x = normal(random_);
    return values;
  }
  void run(const Schedule& schedule, uint64_t seed, bool has_delta = true) {
    CombineParams params = {};
    params.type = type_;
    params.schedule = schedule;
    params.out = out.data();
    params.delta = has_delta ? delta.data() : nullptr;
    params.lse_global = lse_global.data();
    params.lse_local = has_delta ? lse_local.data() : nullptr;
    params.partial_out = partial_out.empty() ? nullptr : partial_out.data();
    params.partial_lse = partial_lse.empty() ? nullptr : partial_lse.data();
    emulation::GlobalMemory memory;
    memory.add(out, "out");
    memory.add(delta, "delta");
    memory.add(lse_global, "lse_global");
    memory.add(lse_local, "lse_local");
    if (!partial_out.empty()) memory.add(partial_out, "partial_out");
    if (!partial_lse.empty()) memory.add(partial_lse, "partial_lse");
    emulation::LaunchOptions launch;
    launch.blocks = 3;
    launch.threads = combine::kThreads;
    launch.seed = seed;
    emulate(launch, memory, [&] {
      if (type_ == ElementType::kBFloat16) {
        combine::run<ElementType::kBFloat16>(params);
      } else {
        combine::run<ElementType::kFloat16>(params);
      }
    });
  }
  double value(const std::vector<uint16_t>& bits, size_t i) const { return emulation::widen_element(type_, bits[i]); }

 private:
  std::mt19937_64 random_;
  ElementType type_;
};

}  // namespace

TEST_CASE("the combine kernel finishes the rows of fractional heads and no others") {
  for (const int dim : {64, 128}) {
    for (const ElementType type : {ElementType::kBFloat16, ElementType::kFloat16}) {
      const std::vector<float> gates = {0, 0.3F, 1, 1e-6F, 0.9F};
      const int group = dim == 64 ? 3 : 1;
      const HostPlan plan({5, 0, 30}, {5, 0, 30}, gates, group, dim, {2, 4}, {});
      const Batch& batch = plan.schedule().batch;
      Memory memory(batch, type, 11);
      const Memory before = memory;
      memory.run(plan.schedule(), 3);
      const double eps = type == ElementType::kBFloat16 ? 0x1p-8 : 0x1p-11;
      for (int token = 0; token < batch.q_tokens; ++token) {
        for (int head = 0; head < batch.query_heads; ++head) {
          const float gate = gates[static_cast<size_t>(head / group)];
          const auto row = static_cast<size_t>(head * batch.q_tokens + token);
          const double local_lse = before.lse_local[row], complement_lse = before.lse_global[row];
          const double share = 1 / (1 + std::exp(local_lse - complement_lse));  // of the complement
          const bool fractional = gate > 0 && gate < 1;
          REQUIRE(memory.lse_local[row] == before.lse_local[row]);
          if (fractional) {
            REQUIRE(memory.lse_global[row] == Approx(local_lse + std::log1p(std::exp(complement_lse - local_lse))));
          } else {
            REQUIRE(memory.lse_global[row] == before.lse_global[row]);
          }
          for (int d = 0; d < dim; ++d) {
            const auto at = static_cast<size_t>((token * batch.query_heads + head) * dim + d);
            if (!fractional) {
              REQUIRE((memory.out[at] == before.out[at] && memory.delta[at] == before.delta[at]));
              continue;
            }
            const double local = before.value(before.out, at), complement = before.value(before.delta, at);
            const double delta = share * (complement - local), out = local + gate * delta;
            REQUIRE(memory.value(memory.delta, at) == Approx(delta).margin(1e-6).epsilon(eps));
            REQUIRE(memory.value(memory.out, at) == Approx(out).margin(1e-6).epsilon(eps));
          }
        }
      }
    }
  }
}

TEST_CASE("the combine kernel merges the pieces of split tiles into their rows") {
  for (const int dim : {64, 128}) {
    ScheduleOptions options;
    options.query_rows = dim == 64 ? 192 : 128;
    options.processors = 13;
    const HostPlan plan({200, 0, 1}, {3000, 8, 2500}, {0, 1, 0}, 2, dim, {128, 256}, options);
    const Schedule& schedule = plan.schedule();
    const Batch& batch = schedule.batch;
    Memory memory(batch, ElementType::kBFloat16, 12);
    const auto slots = static_cast<size_t>(partial_capacity(schedule));
    const auto rows = static_cast<size_t>(options.query_rows);
    memory.partial_out = memory.floats(slots * rows * static_cast<size_t>(dim), 1);
    memory.partial_lse = memory.floats(slots * rows, 3);
    const Memory before = memory;
    memory.run(schedule, 4, false);

    struct Row {
      double top = -1e30, sum = 0;
      std::vector<size_t> parts;
    };
    std::vector<Row> split(static_cast<size_t>(batch.q_tokens * batch.query_heads));
    int partial_items = 0;
    for (const QueryItem& item : plan.query_items()) {
      if (item.partial < 0) continue;
      ++partial_items;
      for (int r = 0; r < item.rows.size(); ++r) {
        const int token = item.document.q_begin + item.rows.begin + r;
        split[static_cast<size_t>(token * batch.query_heads + item.query_head)].parts.push_back(
            static_cast<size_t>(item.partial) * rows + static_cast<size_t>(r));
      }
    }
    REQUIRE(partial_items > 4);
    for (size_t n = 0; n < split.size(); ++n) {
      const size_t token = n / static_cast<size_t>(batch.query_heads),
                   head = n % static_cast<size_t>(batch.query_heads);
      const size_t statistics = head * static_cast<size_t>(batch.q_tokens) + token;
      double sum = 0;
      for (const size_t part : split[n].parts) sum += std::exp(static_cast<double>(before.partial_lse[part]));
      const bool merged = !split[n].parts.empty();
      const double lse = merged ? std::log(sum) : before.lse_global[statistics];
      REQUIRE(memory.lse_global[statistics] == Approx(lse).margin(1e-5));
      for (size_t d = 0; d < static_cast<size_t>(dim); ++d) {
        const size_t at = n * static_cast<size_t>(dim) + d;
        double out = 0;
        for (const size_t part : split[n].parts) {
          out += std::exp(static_cast<double>(before.partial_lse[part])) / sum *
                 before.partial_out[part * static_cast<size_t>(dim) + d];
        }
        if (merged) REQUIRE(memory.value(memory.out, at) == Approx(out).margin(1e-5).epsilon(0x1p-8));
        if (!merged) REQUIRE(memory.out[at] == before.out[at]);
      }
    }
  }
}

TEST_CASE("an invalid batch is poisoned, a valid one is not") {
  for (const bool invalid : {false, true}) {
    HostPlan plan({5, 3}, {5, 3}, {1}, 1, 64, {2, 4}, {});
    const Batch batch = plan.schedule().batch;
    if (invalid) plan.q_bounds()[1] = 9;
    plan.replan(batch, {});
    Memory memory(batch, ElementType::kBFloat16, 13);
    const Memory before = memory;
    memory.run(plan.schedule(), 5);
    const auto expected = [&](const std::vector<uint16_t>& valid) {
      return invalid ? std::vector<uint16_t>(valid.size(), kNanBits) : valid;
    };
    CHECK(memory.out == expected(before.out));
    CHECK(memory.delta == expected(before.delta));
    for (const auto* lse : {&memory.lse_global, &memory.lse_local}) {
      for (const float x : *lse) CHECK(std::isnan(x) == invalid);
    }

    std::vector<uint16_t> half = before.delta;
    std::vector<float> gradient = {1, 2, 3};
    const PoisonParams params = {plan.schedule().state,
                                 {half.data(), nullptr, gradient.data(), nullptr},
                                 {static_cast<int64_t>(half.size()) * 2, 0, 12, 0}};
    emulation::GlobalMemory global;
    global.add(half, "half");
    global.add(gradient, "gradient");
    emulation::LaunchOptions launch;
    launch.blocks = 2;
    launch.threads = combine::kThreads;
    emulate(launch, global, [&] { combine::run(params); });
    CHECK(half == expected(before.delta));
    for (const float x : gradient) CHECK(std::isnan(x) == invalid);
  }
}
